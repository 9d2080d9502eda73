"""What an admin does to the secrets of a client. Every change commits together with its audit event."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.clients.lookup import existing_client, locked_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials.lifecycle import Life, check_overlap, end, forget, life_of, named, split
from gatehouse.authserver.credentials.secrets import MAX_LIVE, REMEMBERED, digest, generate_secret, hint
from gatehouse.authserver.db.models import ClientSecretRow
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.remediation import client_command


@dataclass(frozen=True, slots=True)
class ListedSecret:
    """A secret as an admin sees it."""

    secret_id: str
    prefix: str
    life: Life


def add_secret(session: Session, admin: Administrator, keys: KeyRing, client_id: str) -> tuple[str, str]:
    """Give a client a secret. Return its id and itself, which is nowhere to be had again."""
    secret_id, secret = f"sec_{secrets.token_hex(8)}", generate_secret()
    session.add(
        ClientSecretRow(
            secret_id=secret_id,
            client_id=client_id,
            pepper_id=keys.newest_pepper,
            digest=digest(keys.peppers[keys.newest_pepper], secret),
            hint=hint(secret),
            created_at=admin.now(),
        )
    )
    return secret_id, secret


def rotate_secret(
    session: Session, admin: Administrator, keys: KeyRing, client_id: str, overlap: int = 0
) -> tuple[Client, str]:
    """Give a client a new secret. The old one is accepted for `overlap` seconds, and every old one ends without.

    Raises:
        Refused: unknown client, one that has keys and no secret, an overlap that is too long, or one for which there
            are two live secrets already.
    """
    check_overlap(overlap)
    client, now = locked_client(session, client_id), admin.now()
    method = client.token_endpoint_auth_method
    if method == "private_key_jwt":
        raise Refused(
            "The client authenticates by private_key_jwt: it has keys, and no secret. Replace those: "
            f"{client_command('key replace', client_id)} --jwks FILE"
        )
    living, dead = split(_rows(session, client_id), now)
    if overlap and len(living) >= MAX_LIVE:
        known = " and ".join(f"{row.secret_id} ({row.hint}...)" for row in living)
        mend = client_command("secret expire", client_id)
        raise Refused(
            f"The client has {MAX_LIVE} live secrets: {known}. End the one that nobody uses: {mend} SECRET_ID"
        )
    for row in living:
        end(row, now, overlap)
    forget(session, dead if overlap else [*reversed(living), *dead], REMEMBERED)
    secret_id, secret = add_secret(session, admin, keys, client_id)
    replaced = [row.secret_id for row in living]
    admin.record(session, "client.secret.rotate", client_id, secret_id=secret_id, replaced=replaced, overlap=overlap)
    return existing_client(session, client_id), secret


def expire_secret(session: Session, admin: Administrator, client_id: str, which: str) -> None:
    """End one secret of a client, named by its id or by how it begins. It is refused within one second.

    Does nothing for one that is over.

    Raises:
        Refused: unknown client, no such secret, or no other one that is live.
    """
    locked_client(session, client_id)
    living, dead = split(_rows(session, client_id), admin.now())
    found = named(living, dead, lambda row: which in {row.secret_id, row.hint})
    if found and found[0] in dead:
        return
    if len(found) != 1:
        # Whoever mistook the argument for the secret itself does not see it repeated.
        raise Refused(
            f"That names {'several secrets' if found else 'no secret'} of the client. Give the id that is shown by: "
            + client_command("secret list", client_id)
        )
    if len(living) == 1:
        raise Refused(
            "It is the only live secret, and the client could not authenticate without. Give it another one: "
            f"{client_command('secret rotate', client_id)}; or give it no more tokens: "
            + client_command("disable", client_id)
        )
    end(found[0], admin.now())
    forget(session, [*found, *dead], REMEMBERED)
    admin.record(session, "client.secret.expire", client_id, secret_id=found[0].secret_id)


def list_secrets(session: Session, client_id: str) -> list[ListedSecret]:
    """Return the secrets of a client, the oldest first. Raises Refused."""
    existing_client(session, client_id)
    listed = [ListedSecret(row.secret_id, row.hint, life_of(row)) for row in _rows(session, client_id)]
    return sorted(listed, key=lambda known: known.life.oldest_first())


def _rows(session: Session, client_id: str) -> Sequence[ClientSecretRow]:
    oldest_first = (ClientSecretRow.created_at, ClientSecretRow.secret_id)
    return session.scalars(
        select(ClientSecretRow).where(ClientSecretRow.client_id == client_id).order_by(*oldest_first)
    ).all()
