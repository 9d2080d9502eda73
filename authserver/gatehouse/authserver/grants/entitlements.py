"""Which scopes and tools a client may have, through which grants, and what would allow the others.

The token endpoint, `client explain` and the access matrix all decide here. Tools are decided from the scopes that the
token endpoint would put into a token, and from the catalogue of the resource server. Limits that depend on a tool's
arguments or on the client's workspace are known to the resource server only. Pure: no I/O.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.resources.catalogue import Catalogue
from gatehouse.authserver.resources.registration import MAX_NAME
from gatehouse.authserver.resources.registry import Resource
from gatehouse.shared.protocol.scopes import cut_scope, format_scope, separator_hint
from gatehouse.shared.service.remediation import catalogue_command, client_command, grant_command


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A reason why a client gets no token, and how to remove it."""

    reason: str
    remediation: str | None
    """The command that removes it; None if no single command does."""
    next_step: str | None = None
    """What to do where there is no such command, for people: a sentence."""


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
    """All of these scopes are needed; empty if any valid token suffices."""
    through: frozenset[str]
    """The granted scopes that cover what the tool needs, or a part of it."""
    missing: frozenset[str]
    """The smallest set of scopes that, by the catalogue, would have to be granted."""
    reasons: tuple[str, ...]
    remediation: str | None
    """The command that would allow the call, or several joined by `&&`; empty if it is allowed, None if none would."""

    @property
    def allowed(self) -> bool:
        """Whether the client can call the tool."""
        return not self.reasons


@dataclass(frozen=True, slots=True)
class Served:
    """A resource as its own server declares it, and as it is registered here."""

    catalogue: Catalogue
    registered: Resource | None
    file: str
    """The catalogue's file, for commands."""

    def drift(self) -> Obstacle | None:
        """Return how the registered scopes differ from the catalogue, which the resource server decides by."""
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


class ScopeNotGranted(OAuthError):
    """The client has no grant at a resource, or lacks scopes there.

    The public description does not reveal which resources and scopes exist. `explain` adds what an operator needs.
    """

    def __init__(self, client_id: str, resource: str, missing: frozenset[str] | None = None) -> None:
        self.resource = resource
        self.missing = missing or frozenset()
        if missing is None:
            super().__init__(
                "invalid_target",
                "The client has no grant at this resource. Check the resource's identifier exactly, path included.",
                reason=f"no grant at {resource}",
                remediation=grant_command(client_id, resource, "..."),
            )
            return
        super().__init__(
            "invalid_scope",
            "The client may not have this scope at this resource. Ask its admin for the grant.",
            reason=f"not granted at {resource}: {cut_scope(missing)}",
            remediation=grant_command(client_id, resource, cut_scope(missing)),
        )


def explain(refusal: ScopeNotGranted, registered: Collection[str], declared: frozenset[str]) -> OAuthError:
    """Return a refusal with the reason and the remediation for the operator; its public part stays the same.

    A grant helps only if the resource and the scope exist. `registered` are the identifiers of all resources, and
    `declared` the scopes of the refused one.
    """
    if refusal.resource not in registered:
        reason, remediation = _not_registered(refusal.resource, registered)
    elif unknown := refusal.missing - declared:
        reason = f"{refusal.resource} has no scope {cut_scope(unknown)}; it has: {cut_scope(declared)}"
        remediation = f"Ask for a scope that the resource has.{separator_hint(unknown)}"
    else:
        return refusal
    return OAuthError(refusal.error, refusal.description, reason=reason, remediation=remediation)


def _not_registered(resource: str, registered: Collection[str]) -> tuple[str, str]:
    alike = [known for known in registered if _fold(known) == _fold(resource)]
    if alike:
        return (
            f"{resource} is not registered; {alike[0]} is",
            f"Name the resource as it is registered: {alike[0]}",
        )
    return f"{resource} is not registered", "authserver resource list"


def _fold(resource: str) -> str:
    return resource.rstrip("/").lower()


def grantable(client: Client, resource: str) -> frozenset[str]:
    """Return every scope that a token of the client for a resource may carry: the granted ones and those they imply."""
    granted = client.grants.get(resource)
    return client.hierarchies[resource].closure(granted) if granted else frozenset()


def obstacles(client: Client, untrusted: Sequence[Obstacle] = ()) -> list[Obstacle]:
    """Return why the token endpoint refuses this client every token; empty if it does not.

    Args:
        client: as of now, with its active credentials only.
        untrusted: why no platform token authenticates it, if that is its method.
    """
    found, method = [], client.token_endpoint_auth_method
    if client.disabled:
        found.append(Obstacle("the client is disabled", client_command("enable", client.client_id)))
    if method == "private_key_jwt" and not client.keys:
        found.append(Obstacle("the client has no usable key; add one with client key rotate", None))
    if method == WORKLOAD_IDENTITY:
        found.extend(untrusted)
    if method not in {"private_key_jwt", WORKLOAD_IDENTITY} and not client.secrets:
        found.append(Obstacle("the client has no secret", client_command("secret rotate --yes", client.client_id)))
    return found


def scope_accesses(client: Client) -> list[ScopeAccess]:
    """Return every scope that the client may have, by resource and name."""
    return [
        ScopeAccess(resource, scope, scope in granted, _granted_for(client, resource, [scope]) - {scope})
        for resource, granted in sorted(client.grants.items())
        for scope in sorted(grantable(client, resource))
    ]


def tool_access(client: Client, served: Served, tool: str, untrusted: Sequence[Obstacle] = ()) -> ToolAccess:
    """Decide whether a client can call one tool of the catalogue. `untrusted` is for `obstacles`."""
    catalogue, blocking = served.catalogue, obstacles(client, untrusted)
    needs, resource = catalogue.tools[tool], catalogue.resource
    wanted = _to_grant(served, needs, grantable(client, resource))
    missing = wanted if needs else frozenset()
    reasons = [obstacle.reason for obstacle in blocking]
    if wanted:
        reasons.append(f"needs {format_scope(missing)}" if needs else "no scope is granted there")
    return ToolAccess(
        tool=tool,
        needs=needs,
        through=_granted_for_tool(client, catalogue, needs),
        missing=missing,
        reasons=tuple(reasons),
        remediation=_remediation(client, served, needs, wanted, blocking),
    )


def _granted_for(client: Client, resource: str, scopes: Iterable[str]) -> frozenset[str]:
    """Return each granted scope that, alone, lets a token carry at least one of some scopes."""
    hierarchy, asked = client.hierarchies[resource], frozenset(scopes)
    return frozenset(scope for scope in client.grants[resource] if asked & hierarchy.closure([scope]))


def _granted_for_tool(client: Client, catalogue: Catalogue, needs: frozenset[str]) -> frozenset[str]:
    granted = client.grants.get(catalogue.resource, frozenset())
    if not needs or not granted:
        return granted
    sufficient = {
        scope for scope in grantable(client, catalogue.resource) if needs & catalogue.hierarchy.closure([scope])
    }
    return _granted_for(client, catalogue.resource, sufficient)


def _to_grant(served: Served, needs: frozenset[str], held: frozenset[str]) -> frozenset[str]:
    """Return the smallest set of scopes that, added to those that are held, allow a tool."""
    hierarchy = served.catalogue.hierarchy
    if needs or held:
        return hierarchy.minimal(needs - hierarchy.closure(held))
    # Any valid token suffices, but without a grant the client gets none: choose the scope that allows the least.
    known = served.registered.scopes if served.registered else {}
    scopes = (declaration.scope for declaration in served.catalogue.scopes)
    return frozenset([min(scopes, key=lambda scope: (scope not in known, len(hierarchy.closure([scope])), scope))])


def _remediation(
    client: Client, served: Served, needs: frozenset[str], wanted: frozenset[str], blocking: list[Obstacle]
) -> str | None:
    resource, commands = served.catalogue.resource, []
    for obstacle in blocking:
        if obstacle.remediation is None:
            return None
        commands.append(obstacle.remediation)
    if wanted - (served.registered.scopes.keys() if served.registered else set()):
        commands.append(served.update_command())
        # After that command, a token carries exactly what the catalogue says is implied.
        wanted = _to_grant(served, needs, client.grants.get(resource, frozenset()))
    if wanted:
        commands.append(grant_command(client.client_id, resource, format_scope(wanted)))
    return " && ".join(commands)
