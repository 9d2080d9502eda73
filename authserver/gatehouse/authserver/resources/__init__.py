"""Registered resources and their catalogues."""
