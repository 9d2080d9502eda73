"""Registered clients: what the token endpoint needs to know of one, read at most once a second."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.credentials.lifecycle import ENDLESS, Lifetime, active, lifetime_of
from gatehouse.authserver.credentials.secrets import StoredSecret
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientGrantRow, ClientKeyRow, ClientRow, ClientSecretRow
from gatehouse.authserver.resources.registry import hierarchies
from gatehouse.shared.protocol.jws import VerificationKey, client_verification_keys
from gatehouse.shared.protocol.scopes import ScopeHierarchy
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A public key for private_key_jwt."""

    kid: str
    thumbprint: str
    """RFC 7638."""
    verification: tuple[VerificationKey, ...] = field(repr=False)
    """One for each algorithm that it may verify."""
    lifetime: Lifetime = ENDLESS


@dataclass(frozen=True, slots=True)
class Client:
    """A registered client as it stands."""

    client_id: str
    client_name: str
    token_endpoint_auth_method: str
    token_ttl: int | None
    """Seconds; None for the server's default."""
    strict: bool
    """Refuse a request for any scope that the client may not have, rather than narrow it."""
    claims: Mapping[str, str]
    disabled: bool
    created_at: int
    token_endpoint_audience: bool
    """Admit assertions made for the token endpoint's URL, too (docs/divergences.md)."""
    secrets: tuple[StoredSecret, ...] = field(repr=False)
    """Those that are over, too, and so with the keys: which they are is asked at every use."""
    keys: tuple[ClientKey, ...] = field(repr=False)
    grants: Mapping[str, frozenset[str]]
    """Scopes by resource identifier."""
    hierarchies: Mapping[str, ScopeHierarchy] = field(repr=False)
    """For each of those resources, which scope implies which."""
    token_epoch: int = 0
    """Counts how often all tokens of the client were revoked: what was reserved for it before is void."""

    def as_of(self, now: float) -> "Client":
        """Return the client with the credentials that are accepted at a time."""
        keys = tuple(key for key in active(self.keys, now) if key.verification)
        return replace(self, secrets=active(self.secrets, now), keys=keys)


class ClientRegistry:
    """Finds clients, known or not, with the same queries."""

    def __init__(
        self, database: Database, *, max_age: float = MAX_AGE, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._cache: LoadingCache[str, Client | None] = LoadingCache(self._load, max_age=max_age, monotonic=monotonic)

    def find(self, client_id: str) -> Client | None:
        """Return the client, as it stood at most one second ago. Raises SQLAlchemyError."""
        return self._cache.get(client_id)

    def _load(self, client_id: str) -> Client | None:
        with self._database.read() as session:
            return load_client(session, client_id)


def load_client(session: Session, client_id: str) -> Client | None:
    """Read one client."""
    row = session.get(ClientRow, client_id)
    # The other queries run for an unknown client too: their time must not tell that it is unknown.
    secret_rows = session.scalars(
        select(ClientSecretRow).where(ClientSecretRow.client_id == client_id).order_by(ClientSecretRow.created_at)
    ).all()
    key_rows = session.scalars(
        select(ClientKeyRow).where(ClientKeyRow.client_id == client_id).order_by(ClientKeyRow.created_at)
    ).all()
    grant_rows = session.scalars(
        select(ClientGrantRow).where(ClientGrantRow.client_id == client_id).order_by(ClientGrantRow.resource)
    ).all()
    grants: dict[str, set[str]] = {}
    for grant in grant_rows:
        grants.setdefault(grant.resource, set()).add(grant.scope)
    scope_hierarchies = hierarchies(session, grants)
    if row is None:
        return None
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
        keys=tuple(_key(key_row) for key_row in key_rows),
        secrets=tuple(StoredSecret(row.pepper_id, row.digest, row.secret_id, lifetime_of(row)) for row in secret_rows),
        grants={resource: frozenset(scopes) for resource, scopes in grants.items()},
        hierarchies=scope_hierarchies,
        token_epoch=row.token_epoch,
    )


def _key(row: ClientKeyRow) -> ClientKey:
    verification = tuple(client_verification_keys(row.jwk))
    return ClientKey(str(row.jwk.get("kid", row.thumbprint)), row.thumbprint, verification, lifetime_of(row))


def list_clients(session: Session) -> list[Client]:
    """Read every client, by name."""
    ids = session.scalars(select(ClientRow.client_id).order_by(ClientRow.client_name, ClientRow.client_id)).all()
    return [client for client_id in ids if (client := load_client(session, client_id)) is not None]
