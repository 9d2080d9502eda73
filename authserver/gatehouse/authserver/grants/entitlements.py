"""What a client can reach: which scopes, which tools, through which grant, and what would allow the rest.

Decided from what the token endpoint would put into a token, and from the catalogue of the resource server that would
judge it. Pure: no I/O. What a tool's arguments and the caller's workspace allow is the resource server's to say.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import urlsplit

from gatehouse.authserver.administration import MAX_NAME
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.resources.catalogue import Catalogue
from gatehouse.authserver.resources.registry import Resource
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.service.remediation import catalogue_command, client_command, grant_command


@dataclass(frozen=True, slots=True)
class Obstacle:
    """What is in the way, and the command that would clear it."""

    reason: str
    remediation: str | None
    """None where no command can."""


@dataclass(frozen=True, slots=True)
class ScopeAccess:
    """A scope that a token of the client may carry."""

    resource: str
    scope: str
    granted: bool
    by: frozenset[str]
    """The other granted scopes that imply it."""


@dataclass(frozen=True, slots=True)
class ToolAccess:
    """Whether a client can call a tool today."""

    tool: str
    needs: frozenset[str]
    """Every one of them; none where any valid token suffices."""
    through: frozenset[str]
    """The granted scopes that give what it needs, or a part of it."""
    missing: frozenset[str]
    """The fewest scopes that, by the catalogue, would have to be granted."""
    reasons: tuple[str, ...]
    remediation: str | None
    """The command that would allow it, or several joined by `&&`: empty if it is allowed, None where none can."""

    @property
    def allowed(self) -> bool:
        """Tell whether nothing is in the way."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Served:
    """A resource as its server declares it, beside what is registered here."""

    catalogue: Catalogue
    registered: Resource | None
    file: str
    """Where the catalogue was read from, for commands."""

    def drift(self) -> Obstacle | None:
        """Return how the registered scopes differ from the catalogue, by which the resource server decides."""
        resource, registered, hierarchy = self.catalogue.resource, self.registered, self.catalogue.hierarchy
        if registered is None:
            return Obstacle(f"{resource} is not registered here", self.update_command())
        declared = {scope.scope for scope in self.catalogue.scopes}
        differing = declared - registered.scopes.keys()
        for scope in declared | registered.scopes.keys():
            if hierarchy.implies.get(scope) != registered.hierarchy.implies.get(scope):
                differing.add(scope)
        if not differing:
            return None
        reason = f"the scopes registered for {resource} differ from the catalogue: {format_scope(differing)}"
        return Obstacle(reason, self.update_command())

    def update_command(self) -> str:
        """Return the command that registers what the catalogue says."""
        resource = self.catalogue.resource
        name = self.registered.resource_name if self.registered else (urlsplit(resource).hostname or "")[:MAX_NAME]
        return catalogue_command(resource, name, self.file)


def grantable(client: Client, resource: str) -> frozenset[str]:
    """Return all that a token of the client for a resource may carry: what was granted, and what that implies."""
    granted = client.grants.get(resource)
    return client.hierarchies[resource].closure(granted) if granted else frozenset()


def obstacles(client: Client) -> list[Obstacle]:
    """Return why the token endpoint gives this client no token at all; nothing if it does.

    The client is given as of now: with the credentials that are accepted.
    """
    found, method = [], client.token_endpoint_auth_method
    if client.disabled:
        found.append(Obstacle("the client is disabled", client_command("enable", client.client_id)))
    if method == "private_key_jwt" and not client.keys:
        found.append(Obstacle("the client has no usable key, and needs one by client key replace", None))
    if method != "private_key_jwt" and not client.secrets:
        found.append(Obstacle("the client has no secret", client_command("secret rotate --yes", client.client_id)))
    return found


def scope_accesses(client: Client) -> list[ScopeAccess]:
    """Return every scope that the client may have, by resource and name."""
    return [
        ScopeAccess(resource, scope, scope in granted, _givers(client, resource, [scope]) - {scope})
        for resource, granted in sorted(client.grants.items())
        for scope in sorted(grantable(client, resource))
    ]


def tool_access(client: Client, served: Served, tool: str) -> ToolAccess:
    """Decide about one tool of the catalogue."""
    catalogue, in_the_way = served.catalogue, obstacles(client)
    needs, resource = catalogue.tools[tool], catalogue.resource
    wanted = _to_grant(served, needs, grantable(client, resource))
    missing = wanted if needs else frozenset()
    reasons = [obstacle.reason for obstacle in in_the_way]
    if wanted:
        reasons.append(f"needs {format_scope(missing)}" if needs else "no scope is granted there")
    return ToolAccess(
        tool=tool,
        needs=needs,
        through=_tool_givers(client, catalogue, needs),
        missing=missing,
        reasons=tuple(reasons),
        remediation=_remediation(client, served, needs, wanted, in_the_way),
    )


def _givers(client: Client, resource: str, scopes: Iterable[str]) -> frozenset[str]:
    """Return the granted scopes of which each, alone, lets a token carry one of some scopes."""
    hierarchy, asked = client.hierarchies[resource], frozenset(scopes)
    return frozenset(scope for scope in client.grants[resource] if asked & hierarchy.closure([scope]))


def _tool_givers(client: Client, catalogue: Catalogue, needs: frozenset[str]) -> frozenset[str]:
    granted = client.grants.get(catalogue.resource, frozenset())
    if not needs or not granted:
        return granted
    sufficient = {
        scope for scope in grantable(client, catalogue.resource) if needs & catalogue.hierarchy.closure([scope])
    }
    return _givers(client, catalogue.resource, sufficient)


def _to_grant(served: Served, needs: frozenset[str], held: frozenset[str]) -> frozenset[str]:
    """Return the fewest scopes that, granted beside those that are held, allow a tool."""
    hierarchy = served.catalogue.hierarchy
    if needs or held:
        return hierarchy.minimal(needs - hierarchy.closure(held))
    # Any valid token will do, and there is none without a grant: the one that lets do least.
    known = served.registered.scopes if served.registered else {}
    scopes = (declaration.scope for declaration in served.catalogue.scopes)
    return frozenset([min(scopes, key=lambda scope: (scope not in known, len(hierarchy.closure([scope])), scope))])


def _remediation(
    client: Client, served: Served, needs: frozenset[str], wanted: frozenset[str], in_the_way: list[Obstacle]
) -> str | None:
    resource, commands = served.catalogue.resource, []
    for obstacle in in_the_way:
        if obstacle.remediation is None:
            return None
        commands.append(obstacle.remediation)
    if wanted - (served.registered.scopes.keys() if served.registered else set()):
        commands.append(served.update_command())
        # From then on a token carries what the catalogue says is implied, and nothing else.
        wanted = _to_grant(served, needs, client.grants.get(resource, frozenset()))
    if wanted:
        commands.append(grant_command(client.client_id, resource, format_scope(wanted)))
    return " && ".join(commands)
