"""Registered clients, as the token endpoint and the commands read them."""

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeAlias

from sqlalchemy import ColumnElement, Connection, Executable, Label, Row, Text, and_, bindparam, cast, select, true
from sqlalchemy.orm import InstrumentedAttribute, Session

from gatehouse.authserver.credentials.client_jwks import client_verification_keys
from gatehouse.authserver.credentials.lifecycle import NEVER_EXPIRES, Lifetime, active
from gatehouse.authserver.credentials.secrets import StoredSecret
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import (
    ClientGrantRow,
    ClientKeyRow,
    ClientRow,
    ClientSecretRow,
    CredentialRow,
    ResourceScopeRow,
)
from gatehouse.shared.protocol.jws import VerificationKey
from gatehouse.shared.protocol.scopes import ScopeHierarchy
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cache import GroupLoadingCache

AUTH_METHODS = ("client_secret_basic", "client_secret_post", "private_key_jwt")
"""What a client can be registered for that has credentials of its own (`token_endpoint_auth_method`, RFC 7591 2)."""

WORKLOAD_IDENTITY: Final = "workload_identity"
"""The method of a client without credentials of its own: trust rules say which platform tokens authenticate it."""

REGISTERED_METHODS = (*AUTH_METHODS, WORKLOAD_IDENTITY)
"""What a client can be registered for."""


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


ClientCache: TypeAlias = GroupLoadingCache[str, Client | None]
"""Clients by client_id, in memory. An unknown client is remembered as well, after the same work."""


def find_clients(database: Database, client_ids: Sequence[str]) -> dict[str, Client | None]:
    """Read clients in a transaction of their own; None for each that is unknown. Raises SQLAlchemyError."""
    with database.connect() as connection:
        known = {client.client_id: client for client in load_clients(connection, client_ids)}
    return {client_id: known.get(client_id) for client_id in client_ids}


def load_client(connection: Connection, client_id: str) -> Client | None:
    """Read one client; None if it is unknown."""
    return next(iter(load_clients(connection, [client_id])), None)


def load_clients(connection: Connection, client_ids: Sequence[str] | None = None) -> list[Client]:
    """Read some clients, or all, by name.

    There are two queries for any number of clients. They are the same for an unknown client, so that the time does not
    reveal that it is unknown.
    """
    if client_ids is None:
        return _load(connection, _ALL_CLIENTS)
    return _load(connection, _SOME_CLIENTS, {"client_ids": client_ids})


def existing_client(session: Session, client_id: str) -> Client:
    """Read one client, including the changes of this transaction. Raises CommandRefused if there is none."""
    _check_id(client_id)
    session.flush()
    client = load_client(session.connection(), client_id)
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


@dataclass(frozen=True, slots=True)
class _Queries:
    """What is read of some clients."""

    clients: Executable
    """A row for each client and credential; one row for a client without any."""
    scopes: Executable
    """A row for each client and granted scope; one row without a client for each other scope of the same resources,
    because a granted scope may imply it, or be implied by it."""


def _queries(chosen: Callable[[InstrumentedAttribute[str]], ColumnElement[bool]]) -> _Queries:
    """Return the queries for the clients whose `client_id` meets a condition."""
    client, secret, key, grant, scope = ClientRow, ClientSecretRow, ClientKeyRow, ClientGrantRow, ResourceScopeRow
    granted = and_(grant.resource == scope.resource, grant.scope == scope.scope, chosen(grant.client_id))
    return _Queries(
        select(
            *client.__table__.columns,
            *(secret.secret_id, secret.pepper_id, secret.digest, *_lifetime_columns(secret, "secret")),
            *(key.thumbprint, cast(key.jwk, Text).label("jwk"), *_lifetime_columns(key, "key")),
        )
        .outerjoin(secret, secret.client_id == client.client_id)
        .outerjoin(key, key.client_id == client.client_id)
        .where(chosen(client.client_id))
        .order_by(client.client_name, client.client_id, secret.created_at, key.created_at),
        select(scope.resource, scope.scope, scope.implies, grant.client_id)
        .outerjoin(grant, granted)
        .where(scope.resource.in_(select(grant.resource).where(chosen(grant.client_id))))
        .order_by(scope.resource),
    )


def _lifetime_columns(row: type[CredentialRow], prefix: str) -> list[Label[Any]]:
    columns = {"created": row.created_at, "expires": row.expires_at, "revoked": row.revoked, "used": row.last_used_at}
    return [column.label(f"{prefix}_{name}") for name, column in columns.items()]


# Building a query takes longer than executing it.
_SOME_CLIENTS = _queries(lambda client_id: client_id.in_(bindparam("client_ids", expanding=True)))
_ALL_CLIENTS = _queries(lambda _: true())


def _load(connection: Connection, queries: _Queries, parameters: Mapping[str, Any] | None = None) -> list[Client]:
    rows = connection.execute(queries.clients, parameters).all()
    grants: dict[str, dict[str, set[str]]] = defaultdict(dict)
    implies: dict[str, dict[str, frozenset[str]]] = defaultdict(dict)
    for resource, scope, implied, client_id in connection.execute(queries.scopes, parameters):
        if implied:
            implies[resource][scope] = frozenset(implied)
        if client_id is not None:
            grants[client_id].setdefault(resource, set()).add(scope)
    hierarchies = {resource: ScopeHierarchy(implies[resource]) for granted in grants.values() for resource in granted}
    return [
        _client(list(of_client), grants[client_id], hierarchies)
        for client_id, of_client in groupby(rows, attrgetter("client_id"))
    ]


def _client(
    rows: Sequence[Row[Any]], grants: Mapping[str, set[str]], hierarchies: Mapping[str, ScopeHierarchy]
) -> Client:
    row = rows[0]
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
        # Every combination of a secret and a key is a row.
        secrets=tuple({row.secret_id: _secret(row) for row in rows if row.secret_id is not None}.values()),
        keys=tuple({row.thumbprint: _key(row) for row in rows if row.thumbprint is not None}.values()),
        grants={resource: frozenset(scopes) for resource, scopes in grants.items()},
        hierarchies={resource: hierarchies[resource] for resource in grants},
        token_epoch=row.token_epoch,
    )


def _secret(row: Row[Any]) -> StoredSecret:
    lifetime = Lifetime(row.secret_created, row.secret_expires, row.secret_revoked, row.secret_used)
    return StoredSecret(row.pepper_id, row.digest, row.secret_id, lifetime)


def _key(row: Row[Any]) -> ClientKey:
    lifetime = Lifetime(row.key_created, row.key_expires, row.key_revoked, row.key_used)
    kid, verification = _parse_key(row.jwk)
    return ClientKey(kid or row.thumbprint, row.thumbprint, verification, lifetime)


@lru_cache(maxsize=4096)
def _parse_key(jwk: str) -> tuple[str | None, tuple[VerificationKey, ...]]:
    """Return the `kid` of a stored JWK and its verification keys. Importing a key takes about as long as a query."""
    members = json.loads(jwk)
    return members.get("kid"), tuple(client_verification_keys(members))
