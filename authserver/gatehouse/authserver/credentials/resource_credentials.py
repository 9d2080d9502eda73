"""The credentials that resources use at the introspection endpoint (RFC 7662 2.1), and their authentication.

A credential belongs to one resource and to no client: it cannot obtain or revoke a token.
"""

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.authentication import SecretCredentials, read_credentials
from gatehouse.authserver.credentials.lifecycle import (
    LastUse,
    Lifetime,
    StoredCredentials,
    active,
    check_grace_period,
    inactive_reason,
    lifetime_of,
)
from gatehouse.authserver.credentials.secrets import StoredSecret, digest, find_secret, generate_secret, secret_prefix
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ResourceCredentialRow
from gatehouse.authserver.errors import AuthFailure, invalid_client
from gatehouse.authserver.http import Form, Request
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.resources.registration import parse_resource
from gatehouse.authserver.resources.registry import existing_resource
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache

PREFIX = "gtrs_"
"""Starts the secret of every resource credential."""

AUTH_METHODS = ("client_secret_basic",)
"""A credential is sent like a client's: its id and its secret (RFC 6749 2.3.1)."""

_LIST = "authserver resource credential list"


@dataclass(frozen=True, slots=True)
class AuthenticatedResource:
    """A resource that authenticated."""

    resource: str
    credential_id: str


@dataclass(frozen=True, slots=True)
class ResourceCredential:
    """A credential as an admin sees it."""

    credential_id: str
    resource: str
    prefix: str
    lifetime: Lifetime


@dataclass(frozen=True, slots=True)
class _Stored:
    resource: str
    secret: StoredSecret


class ResourceAuthenticator:
    """Authenticates the resource of an introspection request."""

    def __init__(
        self,
        database: Database,
        last_use: LastUse,
        *,
        max_age: float = MAX_AGE,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._database = database
        self._last_use = last_use
        self._cache: LoadingCache[str, _Stored | None] = LoadingCache(self._load, max_age=max_age, monotonic=monotonic)

    def authenticate(self, request: Request, form: Form, keys: KeyRing, now: float) -> AuthenticatedResource:
        """Authenticate the resource of an introspection request, and set the request's `actor`.

        `now` is seconds since the epoch.

        Raises:
            OAuthError: `invalid_client`, with the failed check as private reason; `invalid_request` for two methods
                in one request.
            SQLAlchemyError: the database is unavailable.
        """
        credentials = read_credentials(request, form)
        if not isinstance(credentials, SecretCredentials) or credentials.method not in AUTH_METHODS:
            reason = f"used {credentials.method}, where resources use client_secret_basic"
            raise invalid_client(AuthFailure.WRONG_METHOD, reason, _LIST)
        stored = self._cache.get(credentials.client_id)
        matched = find_secret(credentials.secret, [stored.secret] if stored else (), keys.peppers)
        if stored is None:
            raise invalid_client(AuthFailure.UNKNOWN_CLIENT, "unknown resource credential", _LIST)
        if matched is None:
            raise invalid_client(AuthFailure.WRONG_SECRET, "wrong secret of a resource credential", _LIST)
        if matched.lifetime.is_inactive(now):
            reason = f"the resource credential {inactive_reason(matched.lifetime)}"
            raise invalid_client(AuthFailure.INACTIVE_SECRET, reason, _LIST)
        self._last_use.note(ResourceCredentialRow, credentials.client_id, now=now)
        request.actor = credentials.client_id
        return AuthenticatedResource(stored.resource, credentials.client_id)

    def _load(self, credential_id: str) -> _Stored | None:
        with self._database.read() as session:
            row = session.get(ResourceCredentialRow, credential_id)
        if row is None:
            return None
        return _Stored(row.resource, StoredSecret(row.pepper_id, row.digest, lifetime=lifetime_of(row)))


def create_credential(
    session: Session, admin: Administrator, keys: KeyRing, resource: str
) -> tuple[ResourceCredential, str]:
    """Create a credential for a resource. Return it and its secret, which cannot be shown again.

    Raises:
        CommandRefused: there is no such resource.
    """
    identifier = parse_resource(resource)
    existing_resource(session, identifier)
    created, secret = _add(session, admin, keys, identifier)
    admin.record(session, AuditAction.RESOURCE_CREDENTIAL_CREATE, identifier, credential_id=created.credential_id)
    return created, secret


def rotate_credential(
    session: Session, admin: Administrator, keys: KeyRing, credential_id: str, grace_period: int = 0
) -> tuple[ResourceCredential, str]:
    """Replace a credential with a new one that has its own id. The old one expires after `grace_period` seconds.

    Without a grace period, the old one is revoked at once.

    Raises:
        CommandRefused: there is no such credential, it was replaced before, or the grace period is too long.
    """
    check_grace_period(grace_period)
    row = _locked(session, credential_id)
    if row.expires_at is not None:
        raise CommandRefused(
            f"The credential was replaced before. Rotate the one that replaced it: {_LIST}; "
            f"or revoke this one: authserver resource credential revoke {credential_id}"
        )
    StoredCredentials(session, [row], admin.now()).replace([row], grace_period)
    created, secret = _add(session, admin, keys, row.resource)
    admin.record(
        session,
        AuditAction.RESOURCE_CREDENTIAL_ROTATE,
        row.resource,
        credential_id=created.credential_id,
        replaced=credential_id,
        grace_period=grace_period,
    )
    return created, secret


def revoke_credential(session: Session, admin: Administrator, credential_id: str) -> None:
    """Revoke a credential. Does nothing if it is inactive already.

    The last one of a resource can be revoked: a resource server works without introspection.

    Raises:
        CommandRefused: there is no such credential.
    """
    row = _locked(session, credential_id)
    stored = StoredCredentials(session, [row], admin.now())
    if stored.active:
        stored.replace([row], grace_period=0)
        admin.record(session, AuditAction.RESOURCE_CREDENTIAL_REVOKE, row.resource, credential_id=credential_id)


def list_credentials(session: Session, now: int) -> list[ResourceCredential]:
    """Return the active credentials, by resource."""
    rows = session.scalars(
        select(ResourceCredentialRow).order_by(ResourceCredentialRow.resource, ResourceCredentialRow.created_at)
    )
    return list(active(map(_credential, rows), now))


def _locked(session: Session, credential_id: str) -> ResourceCredentialRow:
    row = session.get(ResourceCredentialRow, credential_id, with_for_update=True)
    if row is None:
        raise CommandRefused(f"There is no resource credential {credential_id}. See: {_LIST}")
    return row


def _add(session: Session, admin: Administrator, keys: KeyRing, resource: str) -> tuple[ResourceCredential, str]:
    secret = generate_secret(PREFIX)
    row = ResourceCredentialRow(
        credential_id=f"rsc_{secrets.token_hex(8)}",
        resource=resource,
        pepper_id=keys.newest_pepper,
        digest=digest(keys.peppers[keys.newest_pepper], secret),
        prefix=secret_prefix(secret),
        created_at=admin.now(),
    )
    session.add(row)
    session.flush()
    return _credential(row), secret


def _credential(row: ResourceCredentialRow) -> ResourceCredential:
    return ResourceCredential(row.credential_id, row.resource, row.prefix, lifetime_of(row))
