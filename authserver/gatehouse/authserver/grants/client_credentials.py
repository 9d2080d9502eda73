"""The client-credentials grant (RFC 6749 4.4): which resource, which scopes. Pure: no I/O."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.entitlements import grantable
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, cut_scope, parse_scope
from gatehouse.shared.service.remediation import client_command, grant_command

GRANT_TYPE = "client_credentials"


@dataclass(frozen=True, slots=True)
class GrantedRequest:
    """A token request that is to be answered with a token. Only `choose_scope` makes one."""

    client: Client
    resource: str
    scope: frozenset[str]
    scope_not_granted: frozenset[str] = frozenset()
    """What was asked for and is not granted."""


class ScopeNotGranted(OAuthError):
    """The client lacks the grant of a resource, or of scopes there.

    `explanation.explain` knows the remediation: a grant, where what is asked for exists.
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


def choose_resource(authenticated: AuthenticatedClient, requested: Sequence[str]) -> str:
    """Return the one resource that the token will be for (RFC 8707 2).

    `requested` holds every `resource` parameter of the request. None: taken only if the client has exactly one.

    Raises:
        OAuthError: `invalid_target`.
    """
    granted = authenticated.client.grants
    if not requested:
        if len(granted) == 1:
            return next(iter(granted))
        raise _invalid_target(
            "Name the resource that the token is for: the client has none, or several.",
            f"no resource named; the client has {len(granted)}",
            client_command("show", authenticated.client.client_id),
        )
    if len(requested) > 1:
        raise _invalid_target("Name one resource: a token is for one.", "several resources named")
    try:
        resource = parse_resource_identifier(requested[0])
    except InvalidResourceIdentifier as error:
        raise _invalid_target(str(error), f"malformed resource: {error}") from None
    if resource not in granted:
        raise ScopeNotGranted(authenticated.client.client_id, resource)
    return resource


def _invalid_target(description: str, reason: str, remediation: str | None = None) -> OAuthError:
    return OAuthError("invalid_target", description, reason=reason, remediation=remediation)


def choose_scope(authenticated: AuthenticatedClient, resource: str, form: Mapping[str, str]) -> GrantedRequest:
    """Grant the part of the requested scope that the client may have at the resource (RFC 6749 3.3).

    Without a `scope` parameter, all that it was granted there. What a granted scope implies can be requested too.

    Raises:
        OAuthError: `invalid_scope` when the syntax is wrong or nothing remains; for a strict client, when
            anything is asked that it may not have.
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
