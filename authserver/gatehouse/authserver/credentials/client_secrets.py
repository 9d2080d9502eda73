"""The secrets of clients: created, rotated, revoked and listed. Every change commits together with its audit event."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client, existing_client, lock_client, locked_client
from gatehouse.authserver.credentials.lifecycle import (
    CredentialKind,
    Lifetime,
    StoredCredentials,
    check_grace_period,
    lifetime_of,
)
from gatehouse.authserver.credentials.secrets import MAX_ACTIVE, MAX_INACTIVE, digest, generate_secret, secret_prefix
from gatehouse.authserver.db.models import ClientSecretRow
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.remediation import client_command

_KIND = CredentialKind("secret", "id")


@dataclass(frozen=True, slots=True)
class ListedSecret:
    """A secret as an admin sees it."""

    secret_id: str
    prefix: str
    lifetime: Lifetime


def add_secret(session: Session, admin: Administrator, keys: KeyRing, client_id: str) -> tuple[str, str]:
    """Create a secret for a client. Return its id and the secret itself, which cannot be shown again."""
    secret_id, secret = f"sec_{secrets.token_hex(8)}", generate_secret()
    session.add(
        ClientSecretRow(
            secret_id=secret_id,
            client_id=client_id,
            pepper_id=keys.newest_pepper,
            digest=digest(keys.peppers[keys.newest_pepper], secret),
            prefix=secret_prefix(secret),
            created_at=admin.now(),
        )
    )
    return secret_id, secret


def rotate_secret(
    session: Session, admin: Administrator, keys: KeyRing, client_id: str, grace_period: int = 0
) -> tuple[Client, str]:
    """Create a new secret for a client, and let the others expire after `grace_period` seconds.

    Without a grace period, the others are revoked at once.

    Raises:
        CommandRefused: an unknown client, one that authenticates without a secret, a grace period that is too long, or
            a grace period for a client that has two active secrets already.
    """
    check_grace_period(grace_period)
    client = locked_client(session, client_id)
    method = client.token_endpoint_auth_method
    if method == "private_key_jwt":
        raise CommandRefused(
            "The client authenticates by private_key_jwt: it has keys and no secret. Rotate those: "
            f"{client_command('key rotate', client_id)} --jwks FILE"
        )
    if method == WORKLOAD_IDENTITY:
        raise CommandRefused(
            f"The client authenticates by {method}: it has no secret. See its trust rules: "
            + client_command("trust list", client_id)
        )
    stored = _stored(session, client_id, admin.now())
    if grace_period and len(stored.active) >= MAX_ACTIVE:
        known = " and ".join(f"{row.secret_id} ({row.prefix}...)" for row in stored.active)
        raise CommandRefused(
            f"The client has {MAX_ACTIVE} active secrets: {known}. Revoke the one that is not in use: "
            f"{client_command('secret revoke', client_id)} SECRET_ID"
        )
    replaced = [row.secret_id for row in stored.active]
    stored.replace(stored.active, grace_period)
    secret_id, secret = add_secret(session, admin, keys, client_id)
    admin.record(
        session,
        AuditAction.CLIENT_SECRET_ROTATE,
        client_id,
        secret_id=secret_id,
        replaced=replaced,
        grace_period=grace_period,
    )
    return existing_client(session, client_id), secret


def revoke_secret(session: Session, admin: Administrator, client_id: str, which: str) -> None:
    """Revoke one secret of a client, named by its id or its prefix. Does nothing if it is inactive already.

    Raises:
        CommandRefused: an unknown client, no such secret, several, or the only active one.
    """
    lock_client(session, client_id)
    stored = _stored(session, client_id, admin.now())
    revoked = stored.revoke(client_id, _KIND, lambda row: which in {row.secret_id, row.prefix})
    if revoked is not None:
        admin.record(session, AuditAction.CLIENT_SECRET_REVOKE, client_id, secret_id=revoked.secret_id)


def list_secrets(session: Session, client_id: str) -> list[ListedSecret]:
    """Return the secrets of a client, the oldest first. Raises CommandRefused."""
    existing_client(session, client_id)
    listed = [ListedSecret(row.secret_id, row.prefix, lifetime_of(row)) for row in _rows(session, client_id)]
    return sorted(listed, key=lambda known: known.lifetime.oldest_first())


def _stored(session: Session, client_id: str, now: int) -> StoredCredentials[ClientSecretRow]:
    return StoredCredentials(session, _rows(session, client_id), now, kept=MAX_INACTIVE)


def _rows(session: Session, client_id: str) -> Sequence[ClientSecretRow]:
    oldest_first = (ClientSecretRow.created_at, ClientSecretRow.secret_id)
    return session.scalars(
        select(ClientSecretRow).where(ClientSecretRow.client_id == client_id).order_by(*oldest_first)
    ).all()
