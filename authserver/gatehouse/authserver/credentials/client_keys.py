"""The public keys of clients: rotated and revoked. Every change commits together with its audit event."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client, existing_client, lock_client, locked_client
from gatehouse.authserver.credentials.client_jwks import (
    MAX_CLIENT_KEYS,
    client_verification_keys,
    parse_client_keys,
)
from gatehouse.authserver.credentials.lifecycle import (
    CredentialKind,
    StoredCredentials,
    check_grace_period,
    inactive_reason,
    lifetime_of,
)
from gatehouse.authserver.db.models import ClientKeyRow
from gatehouse.shared.protocol.jws import InvalidKeySet
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.remediation import client_command

_KIND = CredentialKind("key", "thumbprint", " --jwks FILE")

_SHORTEST_PREFIX = 8
"""Characters of a thumbprint that are enough to name a key."""


def parse_keys(jwks: bytes) -> dict[str, dict[str, Any]]:
    """Parse the public keys of a client. Return the JWKs by thumbprint (RFC 7638). Raises CommandRefused."""
    try:
        keys = parse_client_keys(jwks).jwks
    except InvalidKeySet as error:
        raise CommandRefused(f"The keys cannot be used: {str(error).rstrip('.')}.") from None
    return {client_verification_keys(jwk)[0].thumbprint: jwk for jwk in keys}


def add_keys(session: Session, admin: Administrator, client_id: str, keys: Mapping[str, Mapping[str, Any]]) -> None:
    """Register public keys of a client, given by thumbprint."""
    for thumbprint, jwk in keys.items():
        session.add(ClientKeyRow(client_id=client_id, thumbprint=thumbprint, jwk=dict(jwk), created_at=admin.now()))


def rotate_keys(session: Session, admin: Administrator, client_id: str, jwks: bytes, grace_period: int = 0) -> Client:
    """Make the keys of a file those of a client, and let its others expire after `grace_period` seconds.

    Without a grace period, the others are revoked at once. A key of the file that the client has already stays, and no
    longer expires. An inactive key cannot become active again.

    Raises:
        CommandRefused: an unknown client, one that has no keys of its own, keys that cannot be used, a grace period
            that is too long, or more than 8 active keys.
    """
    check_grace_period(grace_period)
    wanted = parse_keys(jwks)
    client = locked_client(session, client_id)
    method = client.token_endpoint_auth_method
    if method == WORKLOAD_IDENTITY:
        raise CommandRefused(
            f"The client authenticates by {method}: it has no keys of its own. See its trust rules: "
            + client_command("trust list", client_id)
        )
    if method != "private_key_jwt":
        raise CommandRefused(
            f"The client authenticates by {method}: it has a secret and no keys. Rotate that: "
            + client_command("secret rotate", client_id)
        )
    stored = _stored(session, client_id, admin.now())
    for row in stored.inactive:
        if row.thumbprint in wanted:
            raise CommandRefused(
                f"The key {row.thumbprint} {inactive_reason(lifetime_of(row))} and cannot become active again. "
                "Generate a new one."
            )
    replaced = [row for row in stored.active if row.thumbprint not in wanted]
    if grace_period and len(wanted) + len(replaced) > MAX_CLIENT_KEYS:
        raise CommandRefused(
            f"The client would have more than {MAX_CLIENT_KEYS} active keys until the grace period ends. Revoke those "
            f"that are not in use: {client_command('key revoke', client_id)} KEY; or rotate without a grace period."
        )
    for row in stored.active:
        if row.thumbprint in wanted:
            row.jwk, row.expires_at = wanted.pop(row.thumbprint), None
    stored.replace(replaced, grace_period)
    add_keys(session, admin, client_id, wanted)
    admin.record(
        session,
        AuditAction.CLIENT_KEY_ROTATE,
        client_id,
        added=sorted(wanted),
        replaced=sorted(row.thumbprint for row in replaced),
        grace_period=grace_period,
    )
    return existing_client(session, client_id)


def revoke_key(session: Session, admin: Administrator, client_id: str, which: str) -> None:
    """Revoke one key of a client, named by its `kid`, its thumbprint, or 8 or more characters that it begins with.

    Does nothing if it is inactive already.

    Raises:
        CommandRefused: an unknown client, no such key, several, or the only active one.
    """
    lock_client(session, client_id)
    revoked = _stored(session, client_id, admin.now()).revoke(
        client_id, _KIND, lambda row: row.jwk.get("kid") == which or _begins(row.thumbprint, which)
    )
    if revoked is not None:
        admin.record(session, AuditAction.CLIENT_KEY_REVOKE, client_id, thumbprint=revoked.thumbprint)


def _begins(thumbprint: str, which: str) -> bool:
    return len(which) >= _SHORTEST_PREFIX and thumbprint.startswith(which)


def _stored(session: Session, client_id: str, now: int) -> StoredCredentials[ClientKeyRow]:
    rows = session.scalars(
        select(ClientKeyRow)
        .where(ClientKeyRow.client_id == client_id)
        .order_by(ClientKeyRow.created_at, ClientKeyRow.thumbprint)
    )
    return StoredCredentials(session, rows, now, kept=MAX_CLIENT_KEYS)
