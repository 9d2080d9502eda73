"""Signing keys and peppers, sealed at rest."""
