"""What an admin does to the public keys of a client. Every change commits together with its audit event."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.clients.lookup import existing_client, locked_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials.lifecycle import (
    check_grace_period,
    end,
    inactive_reason,
    lifetime_of,
    match,
    partition_active,
    prune,
)
from gatehouse.authserver.db.models import ClientKeyRow
from gatehouse.shared.protocol.jws import MAX_CLIENT_KEYS, InvalidKeySet, client_verification_keys, parse_client_keys
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction
from gatehouse.shared.service.remediation import client_command

_SHORTEST_PREFIX = 8
"""Characters of a thumbprint that name a key."""


def parse_keys(jwks: bytes) -> dict[str, dict[str, Any]]:
    """Read the public keys of a client, by thumbprint (RFC 7638). Raises Refused."""
    try:
        keys = parse_client_keys(jwks)
    except InvalidKeySet as error:
        raise Refused(f"The keys cannot be used: {str(error).rstrip('.')}.") from None
    return {client_verification_keys(jwk)[0].thumbprint: jwk for jwk in keys}


def add_keys(session: Session, admin: Administrator, client_id: str, keys: Mapping[str, Mapping[str, Any]]) -> None:
    """Register public keys of a client, by thumbprint."""
    for thumbprint, jwk in keys.items():
        session.add(ClientKeyRow(client_id=client_id, thumbprint=thumbprint, jwk=dict(jwk), created_at=admin.now()))


def replace_keys(session: Session, admin: Administrator, client_id: str, jwks: bytes, grace_period: int = 0) -> Client:
    """Make the keys of a file those of a client. Others that it has are accepted for `grace_period` seconds.

    A key of the file that the client has stays, and loses the end that it had. One that is over does not come back.

    Raises:
        Refused: unknown client, one that has a secret and no keys, keys that cannot be used, or more than 8 in all.
    """
    check_grace_period(grace_period)
    wanted = parse_keys(jwks)
    client, now = locked_client(session, client_id), admin.now()
    if (method := client.token_endpoint_auth_method) != "private_key_jwt":
        remediation = client_command("secret rotate", client_id)
        raise Refused(
            f"The client authenticates by {method}: it has a secret, and no keys. Replace that: {remediation}"
        )
    active, inactive = partition_active(_rows(session, client_id), now)
    for row in inactive:
        if row.thumbprint in wanted:
            raise Refused(
                f"The key {row.thumbprint} {inactive_reason(lifetime_of(row))}, and is not accepted again. "
                "Make a new one."
            )
    replaced = [row for row in active if row.thumbprint not in wanted]
    if grace_period and len(wanted) + len(replaced) > MAX_CLIENT_KEYS:
        raise Refused(
            f"The client would have more than {MAX_CLIENT_KEYS} keys until the grace period ends. End those that "
            f"nobody uses: {client_command('key revoke', client_id)} KEY; or replace them without a grace period."
        )
    for row in active:
        if row.thumbprint in wanted:
            row.jwk, row.expires_at = wanted.pop(row.thumbprint), None
        else:
            end(row, now, grace_period)
    prune(session, inactive if grace_period else [*reversed(replaced), *inactive], MAX_CLIENT_KEYS)
    add_keys(session, admin, client_id, wanted)
    admin.record(
        session,
        AuditAction.CLIENT_KEY_REPLACE,
        client_id,
        added=sorted(wanted),
        replaced=sorted(row.thumbprint for row in replaced),
        grace_period=grace_period,
    )
    return existing_client(session, client_id)


def revoke_key(session: Session, admin: Administrator, client_id: str, which: str) -> None:
    """End one key of a client, named by its `kid` or its thumbprint, or 8 characters that it begins with.

    Does nothing for one that is over.

    Raises:
        Refused: unknown client, no such key, or no other one that is live.
    """
    locked_client(session, client_id)
    active, inactive = partition_active(_rows(session, client_id), admin.now())
    found = match(active, inactive, lambda row: row.jwk.get("kid") == which or _begins(row.thumbprint, which))
    if found and found[0] in inactive:
        return
    if len(found) != 1:
        number = "several keys" if found else "no key"
        raise Refused(f"That names {number} of the client. Give a thumbprint: {client_command('key list', client_id)}")
    if len(active) == 1:
        raise Refused(
            "It is the only live key, and the client could not authenticate without. Give it another one: "
            f"{client_command('key replace', client_id)} --jwks FILE; or give it no more tokens: "
            + client_command("disable", client_id)
        )
    end(found[0], admin.now())
    prune(session, [*found, *inactive], MAX_CLIENT_KEYS)
    admin.record(session, AuditAction.CLIENT_KEY_REVOKE, client_id, thumbprint=found[0].thumbprint)


def _begins(thumbprint: str, which: str) -> bool:
    return len(which) >= _SHORTEST_PREFIX and thumbprint.startswith(which)


def _rows(session: Session, client_id: str) -> Sequence[ClientKeyRow]:
    oldest_first = (ClientKeyRow.created_at, ClientKeyRow.thumbprint)
    return session.scalars(
        select(ClientKeyRow).where(ClientKeyRow.client_id == client_id).order_by(*oldest_first)
    ).all()
