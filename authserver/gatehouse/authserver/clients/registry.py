"""Registered clients, as the token endpoint and the commands read them."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from gatehouse.authserver.credentials.client_jwks import client_verification_keys
from gatehouse.authserver.credentials.lifecycle import NEVER_EXPIRES, Lifetime, active, lifetime_of
from gatehouse.authserver.credentials.secrets import StoredSecret
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientGrantRow, ClientKeyRow, ClientRow, ClientSecretRow
from gatehouse.authserver.resources.registry import hierarchies
from gatehouse.shared.protocol.jws import VerificationKey
from gatehouse.shared.protocol.scopes import ScopeHierarchy
from gatehouse.shared.service.administrator import CommandRefused

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "private_key_jwt")
"""What a client can be registered for (`token_endpoint_auth_method`, RFC 7591 2)."""


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A public key for private_key_jwt."""

    kid: str
    thumbprint: str
    """RFC 7638."""
    verification: tuple[VerificationKey, ...] = field(repr=False)
    """The key, once for each algorithm that it may verify."""
    lifetime: Lifetime = NEVER_EXPIRES


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client at the time when it was read."""

    client_id: str
    client_name: str
    token_endpoint_auth_method: str
    token_ttl: int | None
    """Seconds; None for the server's default."""
    strict: bool
    """A request for any scope that the client may not have is refused, not narrowed."""
    claims: Mapping[str, str]
    disabled: bool
    created_at: int
    token_endpoint_audience: bool
    """Assertions for the token endpoint's URL are accepted as well (docs/divergences.md)."""
    secrets: tuple[StoredSecret, ...] = field(repr=False)
    """Including inactive ones, as for the keys: which ones are active is decided at every use."""
    keys: tuple[ClientKey, ...] = field(repr=False)
    grants: Mapping[str, frozenset[str]]
    """Scopes by resource identifier."""
    hierarchies: Mapping[str, ScopeHierarchy] = field(repr=False)
    """For each of those resources, which scope implies which."""
    token_epoch: int = 0
    """Counts how often all tokens of the client were revoked. Status list indices reserved before are void."""

    def as_of(self, now: float) -> "Client":
        """Return the client with the credentials that are active at a time."""
        keys = tuple(key for key in active(self.keys, now) if key.verification)
        return replace(self, secrets=active(self.secrets, now), keys=keys)


RowT = TypeVar("RowT", ClientSecretRow, ClientKeyRow, ClientGrantRow)


def find_client(database: Database, client_id: str) -> Client | None:
    """Read one client in a transaction of its own. Raises SQLAlchemyError."""
    with database.read() as session:
        return load_client(session, client_id)


def load_client(session: Session, client_id: str) -> Client | None:
    """Read one client. The queries are the same for an unknown client: their time must not reveal that."""
    return next(iter(load_clients(session, [client_id])), None)


def existing_client(session: Session, client_id: str) -> Client:
    """Read one client, including the changes of this transaction. Raises CommandRefused if there is none."""
    _check_id(client_id)
    session.flush()
    client = load_client(session, client_id)
    if client is None:
        raise _no_client(client_id)
    return client


def lock_client(session: Session, client_id: str) -> None:
    """Keep other transactions from changing a client until this one ends. Raises CommandRefused if there is none.

    SQLite ignores the clause: the transaction holds the only write lock since it began. A transaction that also locks
    a resource locks that first, so that two transactions cannot wait for each other.
    """
    _check_id(client_id)
    locked = select(ClientRow.client_id).where(ClientRow.client_id == client_id).with_for_update()
    if session.scalar(locked) is None:
        raise _no_client(client_id)


def locked_client(session: Session, client_id: str) -> Client:
    """Lock a client, and read it. Raises CommandRefused if there is none."""
    lock_client(session, client_id)
    return existing_client(session, client_id)


def _check_id(client_id: str) -> None:
    if not client_id:
        raise CommandRefused("The client_id is empty. List the clients with: authserver client list")


def _no_client(client_id: str) -> CommandRefused:
    return CommandRefused(f"There is no client {client_id}. List them with: authserver client list")


def load_clients(session: Session, client_ids: Collection[str] | None = None) -> list[Client]:
    """Read some clients, or all, by name. The number of queries does not depend on the number of clients."""

    def rows_of(row: type[RowT], order: InstrumentedAttribute[Any]) -> dict[str, list[RowT]]:
        query = select(row).order_by(order)
        found: dict[str, list[RowT]] = defaultdict(list)
        for found_row in session.scalars(query if client_ids is None else query.where(row.client_id.in_(client_ids))):
            found[found_row.client_id].append(found_row)
        return found

    query = select(ClientRow).order_by(ClientRow.client_name, ClientRow.client_id)
    clients = session.scalars(query if client_ids is None else query.where(ClientRow.client_id.in_(client_ids))).all()
    secrets, keys = rows_of(ClientSecretRow, ClientSecretRow.created_at), rows_of(ClientKeyRow, ClientKeyRow.created_at)
    grants = rows_of(ClientGrantRow, ClientGrantRow.resource)
    resources = {grant.resource for granted in grants.values() for grant in granted}
    known = hierarchies(session, resources)
    return [_client(row, secrets[row.client_id], keys[row.client_id], grants[row.client_id], known) for row in clients]


def _client(
    row: ClientRow,
    secrets: Sequence[ClientSecretRow],
    keys: Sequence[ClientKeyRow],
    grant_rows: Sequence[ClientGrantRow],
    known: Mapping[str, ScopeHierarchy],
) -> Client:
    grants: dict[str, set[str]] = {}
    for grant in grant_rows:
        grants.setdefault(grant.resource, set()).add(grant.scope)
    return Client(
        client_id=row.client_id,
        client_name=row.client_name,
        token_endpoint_auth_method=row.token_endpoint_auth_method,
        token_ttl=row.token_ttl,
        strict=row.strict,
        claims=row.claims,
        disabled=row.disabled,
        created_at=row.created_at,
        token_endpoint_audience=row.token_endpoint_audience,
        keys=tuple(_key(key) for key in keys),
        secrets=tuple(
            StoredSecret(secret.pepper_id, secret.digest, secret.secret_id, lifetime_of(secret)) for secret in secrets
        ),
        grants={resource: frozenset(scopes) for resource, scopes in grants.items()},
        hierarchies={resource: known[resource] for resource in grants},
        token_epoch=row.token_epoch,
    )


def _key(row: ClientKeyRow) -> ClientKey:
    verification = tuple(client_verification_keys(row.jwk))
    return ClientKey(str(row.jwk.get("kid", row.thumbprint)), row.thumbprint, verification, lifetime_of(row))
