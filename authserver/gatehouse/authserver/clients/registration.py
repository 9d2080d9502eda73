"""Registers, changes and deletes clients. Every change commits together with its audit event."""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete
from sqlalchemy.orm import Session

from gatehouse.authserver.clients.registry import (
    REGISTERED_METHODS,
    WORKLOAD_IDENTITY,
    Client,
    existing_client,
    lock_client,
    locked_client,
)
from gatehouse.authserver.credentials.client_keys import add_keys, parse_keys
from gatehouse.authserver.credentials.client_secrets import add_secret
from gatehouse.authserver.db.models import ClientGrantRow, ClientRow
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.resources.registration import check_name, lock_resource, parse_resource
from gatehouse.authserver.resources.registry import list_resources, load_resource
from gatehouse.authserver.tokens.status_lists import revoke_client
from gatehouse.shared.protocol.claims import MAX_LIFETIME, MAX_STATIC_CLAIMS, InvalidClaims, check_static_claim
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, parse_scope, separator_hint
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction


@dataclass(frozen=True, slots=True)
class Registration:
    """A client to register."""

    name: str
    resource: str
    scope: str
    auth_method: str = "client_secret_basic"
    jwks: bytes | None = None
    """Public keys, for private_key_jwt: a JWK set or one JWK."""
    token_endpoint_audience: bool = False
    token_ttl: int | None = None
    strict: bool = False
    claims: Mapping[str, str] = field(default_factory=dict)


def create_client(
    session: Session, admin: Administrator, keys: KeyRing, registration: Registration
) -> tuple[Client, str | None]:
    """Register a client. Return it and, if it has one, its secret, which cannot be shown again.

    Raises:
        CommandRefused: an unknown resource or scope, a reserved claim, or a value out of bounds.
    """
    _check(registration)
    identifier, scopes = parse_resource(registration.resource), _parse_scope(registration.scope)
    lock_resource(session, identifier, shared=True)
    client_id = f"agent_{secrets.token_hex(10)}"
    session.add(
        ClientRow(
            client_id=client_id,
            client_name=registration.name,
            token_endpoint_auth_method=registration.auth_method,
            token_ttl=registration.token_ttl,
            strict=registration.strict,
            token_endpoint_audience=registration.token_endpoint_audience,
            claims=dict(registration.claims),
            disabled=False,
            created_at=admin.now(),
        )
    )
    session.flush()
    secret = None
    if registration.jwks is not None:
        add_keys(session, admin, client_id, parse_keys(registration.jwks))
    elif registration.auth_method != WORKLOAD_IDENTITY:
        _, secret = add_secret(session, admin, keys, client_id)
    admin.record(
        session,
        AuditAction.CLIENT_CREATE,
        client_id,
        client_name=registration.name,
        token_endpoint_auth_method=registration.auth_method,
        token_endpoint_audience=registration.token_endpoint_audience,
        claims=dict(registration.claims),
    )
    _add_grant(session, admin, client_id, identifier, scopes)
    return existing_client(session, client_id), secret


def _check(registration: Registration) -> None:
    if registration.auth_method not in REGISTERED_METHODS:
        raise CommandRefused(f"The method must be one of: {', '.join(REGISTERED_METHODS)}.")
    if (registration.auth_method == "private_key_jwt") != (registration.jwks is not None):
        raise CommandRefused(
            "private_key_jwt needs public keys, and no other method has any: give --jwks FILE or --generate-key FILE."
        )
    check_values(registration.name, registration.token_ttl, registration.claims)


def check_values(name: str, token_ttl: int | None, claims: Mapping[str, str]) -> None:
    """Check the name, the TTL and the claims of a client. Raises CommandRefused."""
    check_name("client", name)
    if token_ttl is not None and not 1 <= token_ttl <= MAX_LIFETIME:
        raise CommandRefused(f"The TTL must be 1 to {MAX_LIFETIME} seconds.")
    if len(claims) > MAX_STATIC_CLAIMS:
        raise CommandRefused(f"A client has at most {MAX_STATIC_CLAIMS} claims.")
    for claim, value in claims.items():
        try:
            check_static_claim(claim, value)
        except InvalidClaims as error:
            raise CommandRefused(f"The claim cannot be set: {error}.") from None


def set_disabled(session: Session, admin: Administrator, client_id: str, *, disabled: bool) -> Client:
    """Disable or enable a client, and revoke its tokens: none becomes valid again when it is enabled.

    Enabling a client that is not disabled does not change its tokens.

    Raises:
        CommandRefused: there is no such client.
    """
    lock_client(session, client_id)
    row = session.get_one(ClientRow, client_id)
    if disabled or row.disabled:
        revoke_client(session, client_id)
    row.disabled = disabled
    admin.record(session, AuditAction.CLIENT_DISABLE if disabled else AuditAction.CLIENT_ENABLE, client_id)
    return existing_client(session, client_id)


def add_grant(session: Session, admin: Administrator, client_id: str, resource: str, scope: str) -> Client:
    """Grant scopes at a resource to a client, in addition to those that it has.

    Raises:
        CommandRefused: unknown client, resource or scope.
    """
    identifier, scopes = parse_resource(resource), _parse_scope(scope)
    lock_resource(session, identifier, shared=True)
    lock_client(session, client_id)
    _add_grant(session, admin, client_id, identifier, scopes)
    return existing_client(session, client_id)


def _add_grant(session: Session, admin: Administrator, client_id: str, identifier: str, scopes: frozenset[str]) -> None:
    registered = load_resource(session, identifier)
    if registered is None:
        known = ", ".join(known.resource for known in list_resources(session)) or "none"
        raise CommandRefused(
            f"There is no resource {identifier}. Add it with: authserver resource add. Registered are: {known}."
        )
    if unknown := sorted(scopes - registered.declared):
        declared = ", ".join(sorted(registered.declared))
        problem = "no longer declares the" if unknown[0] in registered.scopes else "has no"
        hint = separator_hint(unknown)
        raise CommandRefused(f"The resource {problem} scope {unknown[0]}. Its scopes are: {declared}.{hint}")
    for name in sorted(scopes):
        session.merge(ClientGrantRow(client_id=client_id, resource=identifier, scope=name))
    admin.record(session, AuditAction.CLIENT_GRANT_ADD, client_id, resource=identifier, scope=sorted(scopes))


def remove_grant(session: Session, admin: Administrator, client_id: str, resource: str, scope: str) -> Client:
    """Remove scopes at a resource from a client. Issued tokens keep them until they expire.

    Raises:
        CommandRefused: the client is unknown, or does not have one of the scopes.
    """
    client = locked_client(session, client_id)
    identifier, scopes = parse_resource(resource), _parse_scope(scope)
    if absent := sorted(scopes - client.grants.get(identifier, frozenset())):
        raise CommandRefused(
            f"The client was not granted {absent[0]} at {identifier}. See: authserver client show {client_id}"
        )
    session.execute(
        delete(ClientGrantRow).where(
            ClientGrantRow.client_id == client_id,
            ClientGrantRow.resource == identifier,
            ClientGrantRow.scope.in_(scopes),
        )
    )
    admin.record(session, AuditAction.CLIENT_GRANT_REMOVE, client_id, resource=identifier, scope=sorted(scopes))
    return existing_client(session, client_id)


def _parse_scope(scope: str) -> frozenset[str]:
    try:
        return parse_scope(scope)
    except InvalidScopeSyntax as error:
        raise CommandRefused(f"The scope cannot be read: {error}") from None


@dataclass(frozen=True, slots=True)
class Update:
    """Changes of a client. Fields that are None stay unchanged."""

    name: str | None = None
    token_ttl: int | None = None
    default_ttl: bool = False
    """Remove the client's own TTL."""
    strict: bool | None = None
    token_endpoint_audience: bool | None = None
    claims: Mapping[str, str | None] = field(default_factory=dict)
    """Claims by name; None removes one."""


def update_client(session: Session, admin: Administrator, client_id: str, update: Update) -> Client:
    """Change a client. Issued tokens keep their claims. The audit event names what changed.

    Raises:
        CommandRefused: an unknown client, a reserved claim, a value out of bounds, or a claim to remove that the client
            does not have.
    """
    client = locked_client(session, client_id)
    absent = sorted(name for name, value in update.claims.items() if value is None and name not in client.claims)
    if absent:
        raise CommandRefused(
            f"The client has no claim {absent[0]}. It has: {', '.join(sorted(client.claims)) or 'none'}."
        )
    wanted = {
        "client_name": update.name,
        "token_ttl": update.token_ttl,
        "strict": update.strict,
        "token_endpoint_audience": update.token_endpoint_audience,
    }
    members: dict[str, Any] = {name: value for name, value in wanted.items() if value is not None}
    if update.default_ttl:
        members["token_ttl"] = None
    claims = {name: value for name, value in {**client.claims, **update.claims}.items() if value is not None}
    check_values(members.get("client_name", client.client_name), update.token_ttl, claims)
    changed = {name: value for name, value in members.items() if value != getattr(client, name)}
    row = session.get_one(ClientRow, client_id)
    for name, value in changed.items():
        setattr(row, name, value)
    row.claims = claims
    changed_claims = {name: value for name, value in update.claims.items() if value != client.claims.get(name)}
    if changed or changed_claims:
        detail = {**changed, **({"claims": changed_claims} if changed_claims else {})}
        admin.record(session, AuditAction.CLIENT_UPDATE, client_id, **detail)
    return existing_client(session, client_id)


def delete_client(session: Session, admin: Administrator, client_id: str) -> None:
    """Delete a client with its credentials and grants, and revoke its tokens. Raises CommandRefused."""
    client = locked_client(session, client_id)
    revoke_client(session, client_id)
    session.delete(session.get_one(ClientRow, client_id))
    session.flush()
    admin.record(session, AuditAction.CLIENT_DELETE, client_id, client_name=client.client_name)
