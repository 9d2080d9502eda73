"""What an admin does to the secrets of a client. Every change commits together with its audit event."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.clients.lookup import existing_client, locked_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials.lifecycle import (
    Lifetime,
    check_grace_period,
    end,
    lifetime_of,
    match,
    partition_active,
    prune,
)
from gatehouse.authserver.credentials.secrets import MAX_LIVE, REMEMBERED, digest, generate_secret, secret_prefix
from gatehouse.authserver.db.models import ClientSecretRow
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction
from gatehouse.shared.service.remediation import client_command


@dataclass(frozen=True, slots=True)
class ListedSecret:
    """A secret as an admin sees it."""

    secret_id: str
    prefix: str
    lifetime: Lifetime


def add_secret(session: Session, admin: Administrator, keys: KeyRing, client_id: str) -> tuple[str, str]:
    """Give a client a secret. Return its id and itself, which is nowhere to be had again."""
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
    """Give a client a new secret. The old one is accepted for `grace_period` seconds, and every old one ends without.

    Raises:
        Refused: unknown client, one that has keys and no secret, a grace period that is too long, or one for which
            there
            are two live secrets already.
    """
    check_grace_period(grace_period)
    client, now = locked_client(session, client_id), admin.now()
    method = client.token_endpoint_auth_method
    if method == "private_key_jwt":
        raise Refused(
            "The client authenticates by private_key_jwt: it has keys, and no secret. Replace those: "
            f"{client_command('key replace', client_id)} --jwks FILE"
        )
    active, inactive = partition_active(_rows(session, client_id), now)
    if grace_period and len(active) >= MAX_LIVE:
        known = " and ".join(f"{row.secret_id} ({row.prefix}...)" for row in active)
        remediation = client_command("secret revoke", client_id)
        raise Refused(
            f"The client has {MAX_LIVE} live secrets: {known}. End the one that nobody uses: {remediation} SECRET_ID"
        )
    for row in active:
        end(row, now, grace_period)
    prune(session, inactive if grace_period else [*reversed(active), *inactive], REMEMBERED)
    secret_id, secret = add_secret(session, admin, keys, client_id)
    replaced = [row.secret_id for row in active]
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
    """End one secret of a client, named by its id or by how it begins. It is refused within one second.

    Does nothing for one that is over.

    Raises:
        Refused: unknown client, no such secret, or no other one that is live.
    """
    locked_client(session, client_id)
    active, inactive = partition_active(_rows(session, client_id), admin.now())
    found = match(active, inactive, lambda row: which in {row.secret_id, row.prefix})
    if found and found[0] in inactive:
        return
    if len(found) != 1:
        # Whoever mistook the argument for the secret itself does not see it repeated.
        raise Refused(
            f"That names {'several secrets' if found else 'no secret'} of the client. Give the id that is shown by: "
            + client_command("secret list", client_id)
        )
    if len(active) == 1:
        raise Refused(
            "It is the only live secret, and the client could not authenticate without. Give it another one: "
            f"{client_command('secret rotate', client_id)}; or give it no more tokens: "
            + client_command("disable", client_id)
        )
    end(found[0], admin.now())
    prune(session, [*found, *inactive], REMEMBERED)
    admin.record(session, AuditAction.CLIENT_SECRET_REVOKE, client_id, secret_id=found[0].secret_id)


def list_secrets(session: Session, client_id: str) -> list[ListedSecret]:
    """Return the secrets of a client, the oldest first. Raises Refused."""
    existing_client(session, client_id)
    listed = [ListedSecret(row.secret_id, row.prefix, lifetime_of(row)) for row in _rows(session, client_id)]
    return sorted(listed, key=lambda known: known.lifetime.oldest_first())


def _rows(session: Session, client_id: str) -> Sequence[ClientSecretRow]:
    oldest_first = (ClientSecretRow.created_at, ClientSecretRow.secret_id)
    return session.scalars(
        select(ClientSecretRow).where(ClientSecretRow.client_id == client_id).order_by(*oldest_first)
    ).all()
