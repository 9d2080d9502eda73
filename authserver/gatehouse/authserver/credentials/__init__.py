"""Secrets, client keys and resource credentials: one lifecycle for all three."""
