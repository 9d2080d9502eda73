"""Shared parts of the tests: a fake clock, both servers in this process on real databases, and real clients."""
