"""Registration of resources by an administrator. Each change commits together with its audit event."""

from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import ClientGrantRow, ClientRow, ResourceRow, ResourceScopeRow
from gatehouse.authserver.resources.registry import Resource, existing_resource, load_resource
from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_protected_transport,
    parse_resource_identifier,
)
from gatehouse.shared.protocol.visible_text import check_display_name
from gatehouse.shared.service.administrator import Administrator, CommandRefused
from gatehouse.shared.service.audit.events import AuditAction

MAX_NAME = 128
"""Characters of the display name of a resource or a client."""


@dataclass(frozen=True, slots=True)
class ScopeDeclaration:
    """A scope as its resource declares it."""

    scope: str
    description: str = ""
    implies: tuple[str, ...] = ()


def parse_resource(text: str) -> str:
    """Return the canonical identifier of a resource.

    Raises:
        CommandRefused: it is not a resource identifier, or uses plain http for an address other than loopback.
    """
    try:
        resource = parse_resource_identifier(text)
    except InvalidResourceIdentifier as error:
        raise CommandRefused(str(error)) from None
    if not is_protected_transport(resource):
        raise CommandRefused("A resource must use https. Plain http is only allowed for loopback addresses.")
    return resource


def check_name(entity: str, name: str) -> None:
    """Check a display name. `entity` says in the error whose name it is: `resource` or `client`.

    Raises:
        CommandRefused: the name is blank, longer than MAX_NAME, or has a character that a person does not see.
    """
    try:
        check_display_name(entity, name, MAX_NAME)
    except ValueError as error:
        raise CommandRefused(str(error)) from None


def add_resource(
    session: Session, admin: Administrator, resource: str, name: str, scopes: list[ScopeDeclaration]
) -> Resource:
    """Register a resource, or update the name and scopes of a registered one.

    Scopes that are no longer declared are kept, because clients may hold them. They imply nothing and cannot be
    granted any more.

    Raises:
        CommandRefused: an invalid name, no scope, a scope twice, or an implied scope that is not declared.
    """
    identifier = parse_resource(resource)
    check_name("resource", name)
    lock_resource(session, identifier)
    known = load_resource(session, identifier)
    _check_scopes(scopes)
    if known is None:
        session.add(ResourceRow(resource=identifier, resource_name=name, created_at=admin.now()))
    else:
        session.get_one(ResourceRow, identifier).resource_name = name
    session.flush()
    for declaration in scopes:
        session.merge(
            ResourceScopeRow(
                resource=identifier,
                scope=declaration.scope,
                description=declaration.description,
                implies=list(declaration.implies),
                declared=True,
            )
        )
    names = [declaration.scope for declaration in scopes]
    undeclared = _undeclare(session, identifier, names)
    session.flush()
    action = AuditAction.RESOURCE_ADD if known is None else AuditAction.RESOURCE_UPDATE
    admin.record(session, action, identifier, scopes=sorted(names), undeclared=undeclared)
    return existing_resource(session, identifier)


def lock_resource(session: Session, identifier: str, *, shared: bool = False) -> None:
    """Lock a resource until the transaction ends. With `shared`, other transactions can hold a shared lock too.

    On SQLite the transaction holds the write lock already, and the clause is omitted.
    """
    row = select(ResourceRow.resource).where(ResourceRow.resource == identifier)
    session.execute(row.with_for_update(read=shared))


def _check_scopes(scopes: list[ScopeDeclaration]) -> None:
    names = [declaration.scope for declaration in scopes]
    if not names or len(set(names)) != len(names):
        raise CommandRefused("A resource must have at least one scope, and each scope once.")
    for declaration in scopes:
        if unknown := sorted(set(declaration.implies) - set(names)):
            raise CommandRefused(f"{declaration.scope} implies {unknown[0]}, which is not declared.")


def _undeclare(session: Session, resource: str, declared: list[str]) -> list[str]:
    """Mark all other scopes of a resource as undeclared. They imply nothing any more.

    Return those that were declared until now.
    """
    rows = session.scalars(
        select(ResourceScopeRow).where(ResourceScopeRow.resource == resource, ResourceScopeRow.scope.not_in(declared))
    ).all()
    undeclared = sorted(row.scope for row in rows if row.declared)
    for row in rows:
        row.implies, row.declared = [], False
    return undeclared


def remove_resource(session: Session, admin: Administrator, resource: str) -> list[str]:
    """Remove a resource with its scopes and every grant at it. Return the ids of the clients that had one.

    Issued tokens stay valid until they expire.

    Raises:
        CommandRefused: there is no such resource.
    """
    identifier = parse_resource(resource)
    lock_resource(session, identifier)
    existing_resource(session, identifier)
    clients = _remove_grants(session, admin, identifier)
    session.delete(session.get_one(ResourceRow, identifier))
    session.flush()
    admin.record(session, AuditAction.RESOURCE_REMOVE, identifier, clients=clients)
    return clients


def _remove_grants(session: Session, admin: Administrator, identifier: str) -> list[str]:
    """Remove every grant at a resource, and record an event for each client. Return the ids of the clients."""
    at_resource = ClientGrantRow.resource == identifier
    holders = select(ClientGrantRow.client_id).where(at_resource)
    # In the order of all transactions that lock several clients. The lock of the resource prevents new grants.
    session.execute(
        select(ClientRow.client_id)
        .where(ClientRow.client_id.in_(holders))
        .order_by(ClientRow.client_id)
        .with_for_update()
    )
    removed: dict[str, list[str]] = {}
    for grant in session.scalars(select(ClientGrantRow).where(at_resource)):
        removed.setdefault(grant.client_id, []).append(grant.scope)
    for client_id, scopes in sorted(removed.items()):
        admin.record(session, AuditAction.CLIENT_GRANT_REMOVE, client_id, resource=identifier, scope=sorted(scopes))
    session.execute(delete(ClientGrantRow).where(at_resource))
    return sorted(removed)
