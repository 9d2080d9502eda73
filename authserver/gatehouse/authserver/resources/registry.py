"""Registered resources, their scopes, and which scope implies which."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import ResourceRow, ResourceScopeRow
from gatehouse.shared.protocol.scopes import ScopeHierarchy


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource that tokens can be issued for."""

    resource: str
    resource_name: str
    scopes: Mapping[str, str]
    """Descriptions by scope; also of what it no longer declares, because clients may hold it."""
    declared: frozenset[str]
    """The scopes that it declares, and that can be granted."""
    hierarchy: ScopeHierarchy


def load_resource(session: Session, resource: str) -> Resource | None:
    """Read one resource by its canonical identifier."""
    row = session.get(ResourceRow, resource)
    if row is None:
        return None
    scopes = session.scalars(
        select(ResourceScopeRow).where(ResourceScopeRow.resource == resource).order_by(ResourceScopeRow.scope)
    ).all()
    return Resource(
        resource=row.resource,
        resource_name=row.resource_name,
        scopes={scope.scope: scope.description for scope in scopes},
        declared=frozenset(scope.scope for scope in scopes if scope.declared),
        hierarchy=hierarchies(session, [resource])[resource],
    )


def list_identifiers(session: Session) -> list[str]:
    """Read the identifier of every resource, in order."""
    return list(session.scalars(select(ResourceRow.resource).order_by(ResourceRow.resource)))


def declared_scopes(session: Session, resource: str) -> frozenset[str]:
    """Read the scopes that a resource declares; none of one that is not registered, at the same cost."""
    rows = select(ResourceScopeRow.scope).where(ResourceScopeRow.resource == resource, ResourceScopeRow.declared)
    return frozenset(session.scalars(rows))


def list_resources(session: Session) -> list[Resource]:
    """Read every resource, by identifier."""
    return [
        resource
        for identifier in list_identifiers(session)
        if (resource := load_resource(session, identifier)) is not None
    ]


def hierarchies(session: Session, resources: Collection[str]) -> dict[str, ScopeHierarchy]:
    """Read the scope hierarchies of some resources, in one query whatever their number."""
    implies: dict[str, dict[str, frozenset[str]]] = {resource: {} for resource in resources}
    rows = session.execute(
        select(ResourceScopeRow.resource, ResourceScopeRow.scope, ResourceScopeRow.implies).where(
            ResourceScopeRow.resource.in_(list(resources))
        )
    )
    for resource, scope, implied in rows:
        if implied:
            implies[resource][scope] = frozenset(implied)
    return {resource: ScopeHierarchy(mapping) for resource, mapping in implies.items()}
