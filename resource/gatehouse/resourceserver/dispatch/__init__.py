"""Dispatch: the only way to a tool or a resource."""
