"""Reads registered resources, their scopes, and which scope implies which."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import ResourceRow, ResourceScopeRow
from gatehouse.shared.protocol.scopes import ScopeHierarchy
from gatehouse.shared.service.administrator import CommandRefused


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource that tokens can be issued for."""

    resource: str
    resource_name: str
    scopes: Mapping[str, str]
    """Descriptions by scope, including scopes that it no longer declares but clients may still hold."""
    declared: frozenset[str]
    """The scopes that it declares, which can be granted."""
    hierarchy: ScopeHierarchy


def load_resource(session: Session, resource: str) -> Resource | None:
    """Read one resource by its canonical identifier."""
    row = session.get(ResourceRow, resource)
    return None if row is None else _resources(session, [row])[0]


def existing_resource(session: Session, resource: str) -> Resource:
    """Read one resource by its canonical identifier. Raises CommandRefused if there is none."""
    found = load_resource(session, resource)
    if found is None:
        raise CommandRefused(f"There is no resource {resource}. See: authserver resource list")
    return found


def list_resources(session: Session) -> list[Resource]:
    """Read every resource, by identifier, with two queries."""
    return _resources(session, session.scalars(select(ResourceRow).order_by(ResourceRow.resource)).all())


def _resources(session: Session, rows: Sequence[ResourceRow]) -> list[Resource]:
    scopes: dict[str, list[ResourceScopeRow]] = {row.resource: [] for row in rows}
    of_resources = ResourceScopeRow.resource.in_(list(scopes))
    for scope in session.scalars(select(ResourceScopeRow).where(of_resources).order_by(ResourceScopeRow.scope)):
        scopes[scope.resource].append(scope)
    return [
        Resource(
            resource=row.resource,
            resource_name=row.resource_name,
            scopes={scope.scope: scope.description for scope in scopes[row.resource]},
            declared=frozenset(scope.scope for scope in scopes[row.resource] if scope.declared),
            hierarchy=ScopeHierarchy(
                {scope.scope: frozenset(scope.implies) for scope in scopes[row.resource] if scope.implies}
            ),
        )
        for row in rows
    ]


def list_identifiers(session: Session) -> list[str]:
    """Read the identifier of every resource, in alphabetical order."""
    return list(session.scalars(select(ResourceRow.resource).order_by(ResourceRow.resource)))


def declared_scopes(session: Session, resource: str) -> frozenset[str]:
    """Read the scopes that a resource declares. For an unknown resource, return none at the same cost."""
    rows = select(ResourceScopeRow.scope).where(ResourceScopeRow.resource == resource, ResourceScopeRow.declared)
    return frozenset(session.scalars(rows))
