"""The client-credentials grant (RFC 6749 4.4): which resource and which scopes a token is for. Pure: no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.entitlements import ScopeNotGranted, grantable
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, parse_scope
from gatehouse.shared.service.remediation import client_command

GRANT_TYPE = "client_credentials"

# Only valid identifiers are remembered, and they have at most 512 characters: an exception is not.
_parse_identifier = lru_cache(maxsize=256)(parse_resource_identifier)


@dataclass(frozen=True, slots=True)
class RequestedResource:
    """The `resource` parameters of a request, parsed (RFC 8707 2). Empty if the request has none."""

    identifier: str | None = None
    problem: OAuthError | None = None
    """Why the parameters do not name one resource. Raised only after the client has authenticated."""


@dataclass(frozen=True, slots=True)
class GrantedRequest:
    """A token request that is granted. Only `choose_scope` creates one."""

    client: Client
    resource: str
    scope: frozenset[str]
    scope_not_granted: frozenset[str] = frozenset()
    """The part of the requested scope that is not in the token."""


def read_resource(values: Sequence[str]) -> RequestedResource:
    """Parse every `resource` parameter of a request."""
    if not values:
        return RequestedResource()
    if len(values) > 1:
        problem = _invalid_target("Name one resource: a token is for one.", "several resources named")
        return RequestedResource(problem=problem)
    try:
        return RequestedResource(_parse_identifier(values[0]))
    except InvalidResourceIdentifier as error:
        return RequestedResource(problem=_invalid_target(str(error), f"malformed resource: {error}"))


def choose_resource(authenticated: AuthenticatedClient, requested: RequestedResource) -> str:
    """Return the one resource that the token will be for (RFC 8707 2).

    A request may omit the resource if the client has grants at exactly one.

    Raises:
        OAuthError: `invalid_target`.
    """
    granted = authenticated.client.grants
    if requested.problem is not None:
        raise requested.problem
    if requested.identifier is None:
        if len(granted) == 1:
            return next(iter(granted))
        raise _invalid_target(
            "Name the resource that the token is for: the client has none, or several.",
            f"no resource named; the client has {len(granted)}",
            client_command("show", authenticated.client.client_id),
        )
    if requested.identifier not in granted:
        raise ScopeNotGranted(authenticated.client.client_id, requested.identifier)
    return requested.identifier


def _invalid_target(description: str, reason: str, remediation: str | None = None) -> OAuthError:
    return OAuthError("invalid_target", description, reason=reason, remediation=remediation)


def choose_scope(authenticated: AuthenticatedClient, resource: str, form: Mapping[str, str]) -> GrantedRequest:
    """Grant the part of the requested scope that the client may have at the resource (RFC 6749 3.3).

    Without a `scope` parameter, every scope granted to the client there. A scope that a granted one implies may be
    requested as well.

    Raises:
        OAuthError: `invalid_scope` if the syntax is wrong or nothing remains; for a strict client, if it requests any
            scope that it may not have.
    """
    client = authenticated.client
    granted = client.grants[resource]
    if "scope" not in form:
        return GrantedRequest(client, resource, granted)
    try:
        requested = parse_scope(form["scope"])
    except InvalidScopeSyntax as error:
        raise OAuthError("invalid_scope", str(error)) from None
    allowed = grantable(client, resource)
    scope = requested & allowed
    if not scope or (client.strict and scope != requested):
        raise ScopeNotGranted(client.client_id, resource, requested - allowed)
    return GrantedRequest(client, resource, scope, requested - scope)
