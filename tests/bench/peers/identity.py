"""The tool that the peers in Python serve: the caller's identity, as `whoami` of the directory returns it."""

from typing import Any

from pydantic import BaseModel


class Identity(BaseModel):
    """The calling client, according to its access token."""

    client_id: str
    scopes: list[str]
    workspace_id: str | None
    expires_at: int


def identity_of(client_id: str, scopes: list[str], expires_at: int | None, claims: dict[str, Any]) -> Identity:
    """Return what `whoami` answers."""
    return Identity(
        client_id=client_id, scopes=sorted(scopes), workspace_id=claims.get("workspace_id"), expires_at=expires_at or 0
    )
