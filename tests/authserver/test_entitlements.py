"""`client explain` and `access-matrix` agree with the decisions of both servers."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer
from support.clock import FakeClock

from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.clients.registry import Client, ClientKey, existing_client
from gatehouse.authserver.credentials.client_jwks import client_verification_keys
from gatehouse.authserver.credentials.secrets import StoredSecret
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import choose_resource, choose_scope, read_resource
from gatehouse.authserver.grants.entitlements import (
    Obstacle,
    Served,
    ToolAccess,
    obstacles,
    scope_accesses,
    tool_access,
)
from gatehouse.authserver.resources.catalogue import parse_catalogue
from gatehouse.authserver.resources.registry import Resource
from gatehouse.authserver.tokens.issue import Index, TokenIssuer
from gatehouse.resourceserver import policy
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, Scope, Tool, ToolGroup
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.scopes import ScopeHierarchy

SCOPES = ("a:admin", "a:read", "a:write", "b:$(id)", "b:write")
OLD = "old:scope"
"""Registered once; the resource server declares it no longer."""
FILE = "the catalogue.json"
KEY = SigningKey.generate("ES256")
ISSUER = TokenIssuer("https://as.example.com", 300)

Implications = Mapping[str, frozenset[str]]


class Nothing(BaseModel):
    """Nothing."""


@cache
def _tool(name: str, scopes: frozenset[str]) -> Tool:
    """Return a tool. Cached, because its signature is slow to read."""
    group = ToolGroup()

    async def tool() -> Nothing:
        """Do nothing."""
        return Nothing()

    tool.__name__ = name
    group.tool(scopes=sorted(scopes) or ANY_VALID_TOKEN, read_only=True)(tool)
    return group.declarations[0].read({})


def served_catalogue(implies: Implications, tools: Mapping[str, frozenset[str]]) -> Catalogue:
    """Return a resource server's own catalogue."""
    scopes = [Scope(scope, "", tuple(implies.get(scope, ()))) for scope in SCOPES]
    return Catalogue("test", scopes, [], forwarded=[_tool(name, needed) for name, needed in tools.items()])


@dataclass(frozen=True)
class World:
    """A client, how its resource is registered, and the resource server itself."""

    client: Client
    registered: Resource | None
    catalogue: Catalogue

    @property
    def served(self) -> Served:
        return Served(parse_catalogue(json.dumps(self.catalogue.document(RESOURCE)).encode()), self.registered, FILE)

    def access(self, tool: str) -> ToolAccess:
        return tool_access(self.client, self.served, tool)

    def widest_token(self) -> AccessClaims | None:
        """Return the claims of the widest token that the code of the token endpoint gives the client."""
        if obstacles(self.client):
            return None
        vouched = AuthenticatedClient(self.client)
        try:
            resource = choose_resource(vouched, read_resource([RESOURCE]))
        except OAuthError:
            return None
        had = set()
        for scope in (*SCOPES, OLD):
            try:
                had |= choose_scope(vouched, resource, {"scope": scope}).scope
            except OAuthError:
                continue
        granted = choose_scope(vouched, resource, {"scope": " ".join(had)})
        return ISSUER.issue(granted, Index("0123456789ab", 0), KEY, FakeClock()()).claims

    def can_call(self, tool: str) -> bool:
        claims = self.widest_token()
        return claims is not None and isinstance(policy.decide(self.catalogue, claims, tool), policy.Allowed)

    def run(self, command: str) -> "World":
        """Return this world after a command."""
        words = shlex.split(command)
        assert words[0] == "authserver"
        if words[1:3] == ["resource", "add"]:
            assert words[3:] == [RESOURCE, "--name", self.registered_name(), "--catalogue", FILE]
            registered = registered_as(
                {**dict.fromkeys(SCOPES, frozenset()), **self.served.catalogue.hierarchy.implies}
            )
            return replace(self, registered=registered, client=in_step(self.client, registered))
        if words[1:4] == ["client", "grant", "add"]:
            client_id, _, resource, _, scope = words[4:]
            assert (client_id, resource) == (self.client.client_id, RESOURCE)
            assert self.registered is not None
            assert set(scope.split(" ")) <= self.registered.scopes.keys()
            grants = {RESOURCE: self.client.grants.get(RESOURCE, frozenset()) | frozenset(scope.split(" "))}
            return replace(self, client=in_step(replace(self.client, grants=grants), self.registered))
        changes: dict[str, Any] = {
            "enable": {"disabled": False},
            "secret": {"secrets": (StoredSecret("", b""),)},
        }[words[2]]
        assert words[-1] == self.client.client_id
        return replace(self, client=replace(self.client, **changes))

    def without(self, scope: str) -> "World":
        """Return this world without one grant."""
        grants = {RESOURCE: left} if (left := self.client.grants[RESOURCE] - {scope}) else {}
        return replace(self, client=in_step(replace(self.client, grants=grants), self.registered))

    def registered_name(self) -> str:
        return self.registered.resource_name if self.registered else "mcp.example.com"


def registered_as(implies: Implications) -> Resource:
    """Return a registration with these scopes and one that is no longer declared."""
    hierarchy = ScopeHierarchy({scope: implied for scope, implied in implies.items() if implied})
    return Resource(RESOURCE, "the tools", dict.fromkeys([*implies, OLD], ""), frozenset(implies), hierarchy)


def in_step(client: Client, registered: Resource | None) -> Client:
    """Return the client as the registry loads it: with the hierarchy of each resource where it has a grant."""
    known = {RESOURCE: registered.hierarchy} if registered else {}
    return replace(client, hierarchies={resource: known[resource] for resource in client.grants})


def client_of(*granted: str, **changes: Any) -> Client:
    members = {
        "client_id": "agent_1",
        "client_name": "agent",
        "token_endpoint_auth_method": "client_secret_basic",
        "token_ttl": None,
        "strict": False,
        "claims": {},
        "disabled": False,
        "created_at": 0,
        "token_endpoint_audience": False,
        "secrets": (StoredSecret("", b""),),
        "keys": (),
        "grants": {RESOURCE: frozenset(granted)} if granted else {},
        "hierarchies": {},
    }
    return Client(**{**members, **changes})


# Strategies are made once: to make and validate one is slower than to draw from it.
@cache
def implications(scopes: tuple[str, ...] = SCOPES) -> st.SearchStrategy[dict[str, frozenset[str]]]:
    # Few at a time: if every scope implies every other, no call is refused.
    implied = st.one_of(st.just(frozenset()), st.frozensets(st.sampled_from(scopes), max_size=2))
    return st.fixed_dictionaries(dict.fromkeys(scopes, implied))


@cache
def grants_of(scopes: tuple[str, ...]) -> st.SearchStrategy[frozenset[str]]:
    return st.frozensets(st.sampled_from(scopes), max_size=3)


TOOLS = st.fixed_dictionaries({name: grants_of(SCOPES) for name in "tuv"})
KNOWN = st.frozensets(st.sampled_from(SCOPES)).filter(bool).map(lambda names: tuple(sorted(names)))
KINDS = st.sampled_from(["same", "old", "none"])
DISABLED = st.sampled_from([False, False, True])
SECRETS = st.sampled_from([(StoredSecret("", b""),), ()])
STRICT = st.booleans()


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A world in which the registration is missing, outdated or current."""
    declared = draw(implications())
    tools = draw(TOOLS)
    catalogue = served_catalogue(declared, tools)
    known = draw(KNOWN)
    kind = draw(KINDS)
    registered = {
        "same": registered_as(declared),
        "old": registered_as(draw(implications(known))),
        "none": None,
    }[kind]
    granted = draw(grants_of(tuple(sorted(registered.scopes)))) if registered else ()
    client = client_of(
        *granted,
        strict=draw(STRICT),
        disabled=draw(DISABLED),
        secrets=draw(SECRETS),
    )
    return World(in_step(client, registered), registered, catalogue)


@pytest.mark.threat("T-111")
@given(world=worlds())
def test_a_tool_is_allowed_exactly_if_both_servers_allow_it(world: World) -> None:
    for tool in world.catalogue.tools:
        assert world.access(tool).allowed == world.can_call(tool)


@given(world=worlds())
def test_the_remediation_allows_the_call_with_the_fewest_scopes(world: World) -> None:
    for tool in world.catalogue.tools:
        access, fixed = world.access(tool), world
        assert access.remediation is not None
        assert bool(access.remediation) != access.allowed
        for command in filter(None, access.remediation.split(" && ")):
            assert not fixed.can_call(tool)
            fixed = fixed.run(command)
        assert fixed.can_call(tool)
        assert fixed.access(tool).remediation == ""
        if world.served.drift() is None:
            for scope in access.missing:
                assert not fixed.without(scope).can_call(tool)


@given(world=worlds())
def test_the_listed_grants_alone_allow_the_call(world: World) -> None:
    for tool in world.catalogue.tools:
        access = world.access(tool)
        if access.allowed:
            client = replace(world.client, grants={RESOURCE: access.through})
            assert access.through <= world.client.grants[RESOURCE]
            assert replace(world, client=in_step(client, world.registered)).can_call(tool)


@given(world=worlds())
def test_a_scope_is_listed_exactly_if_a_token_can_carry_it(world: World) -> None:
    open_ = replace(world, client=replace(world.client, disabled=False, secrets=(StoredSecret("", b""),)))
    claims = open_.widest_token()
    listed = scope_accesses(open_.client)
    assert {access.scope for access in listed} == (claims.scope if claims else set())
    for access in listed:
        assert access.granted == (access.scope in world.client.grants[RESOURCE])
        assert access.granted or access.by
        for giver in access.by:
            alone = replace(open_.client, grants={RESOURCE: frozenset([giver])}, strict=True)
            granted = choose_scope(AuthenticatedClient(alone), RESOURCE, {"scope": access.scope})
            assert granted.scope == {access.scope}


@pytest.mark.threat("T-111")
@given(world=worlds())
def test_an_outdated_registration_comes_with_its_remediation(world: World) -> None:
    drift = world.served.drift()
    if drift is None:
        assert world.registered is not None
        for scope in SCOPES:
            assert world.registered.hierarchy.closure([scope]) == world.catalogue.hierarchy.closure([scope])
    else:
        assert drift.remediation is not None
        assert world.run(drift.remediation).served.drift() is None


def world_of(client: Client, registered: Implications | None = None, **tools: frozenset[str]) -> World:
    implies = {"a:write": frozenset({"a:read"})}
    resource = registered_as({**dict.fromkeys(SCOPES, frozenset()), **(implies if registered is None else registered)})
    return World(in_step(client, resource), resource, served_catalogue(implies, tools))


def test_an_implied_missing_scope_need_not_be_granted() -> None:
    world = world_of(client_of("b:write"), t=frozenset({"a:read", "a:write"}))
    assert world.access("t").missing == {"a:write"}


def test_a_client_without_a_usable_key_has_no_remediation() -> None:
    key = ClientKey(KEY.kid, KEY.kid, tuple(client_verification_keys(KEY.public_jwk())))
    method = {"token_endpoint_auth_method": "private_key_jwt", "secrets": ()}
    tools = {"get": frozenset({"a:read"})}
    assert world_of(client_of("a:read", keys=(key,), **method), **tools).access("get").allowed
    access = world_of(client_of("a:read", **method), **tools).access("get")
    assert (access.allowed, access.remediation) == (False, None)
    assert "no usable key" in access.reasons[0]


def test_a_client_of_a_workload_needs_a_trust_rule_and_no_secret() -> None:
    world = world_of(client_of("a:read", token_endpoint_auth_method="workload_identity", secrets=()), get=frozenset())
    assert world.access("get").allowed
    untrusted = Obstacle("the issuer is disabled", "authserver issuer enable cluster")
    access = tool_access(world.client, world.served, "get", [untrusted])
    assert (access.allowed, access.reasons) == (False, ("the issuer is disabled",))
    assert access.remediation == "authserver issuer enable cluster"
    access = tool_access(world.client, world.served, "get", [Obstacle("the client has no trust rule", None, "Add one")])
    assert (access.reasons, access.remediation) == (("the client has no trust rule",), None)
    by_secret = world_of(client_of("a:read"), get=frozenset())
    assert tool_access(by_secret.client, by_secret.served, "get", [untrusted]).allowed


def test_obstacles_are_listed_before_missing_grants() -> None:
    access = world_of(client_of("a:read", disabled=True, secrets=()), set=frozenset({"a:write"})).access("set")
    assert access.reasons == ("the client is disabled", "the client has no secret", "needs a:write")
    assert access.remediation == (
        "authserver client enable agent_1 && authserver client secret rotate --yes agent_1"
        " && authserver client grant add agent_1 --resource https://mcp.example.com/mcp --scope a:write"
    )


def test_a_tool_without_scopes_needs_the_smallest_grant() -> None:
    assert world_of(client_of("a:write"), whoami=frozenset()).access("whoami").through == {"a:write"}
    access = world_of(client_of(), whoami=frozenset()).access("whoami")
    assert (access.missing, access.reasons) == (frozenset(), ("no scope is granted there",))
    assert access.remediation is not None
    assert access.remediation.endswith("--scope a:admin")


def test_a_scope_with_shell_syntax_is_quoted() -> None:
    remediation = world_of(client_of("a:read"), run=frozenset({"b:$(id)"})).access("run").remediation
    assert remediation is not None
    assert "--scope 'b:$(id)'" in remediation


def test_an_old_registration_names_the_scopes_that_differ() -> None:
    drift = world_of(client_of("a:read"), {"a:admin": frozenset({"a:read"})}, get=frozenset({"a:read"})).served.drift()
    assert drift is not None
    assert drift.reason == f"the scopes registered for {RESOURCE} differ from the catalogue: a:admin a:write"
    assert drift.remediation == f"authserver resource add {RESOURCE} --name 'the tools' --catalogue '{FILE}'"


@pytest.mark.both_databases
def test_each_resource_is_explained_separately(authserver: AuthServer) -> None:
    authserver.add_resource(OTHER_RESOURCE, env_read=())
    registered, _ = authserver.create_client("env:write org:read")
    authserver.add_grant(registered, "env:read", OTHER_RESOURCE)
    with authserver.services.database.read() as session:
        client = existing_client(session, registered.client_id)
    assert [(access.resource, access.scope, access.granted, access.by) for access in scope_accesses(client)] == [
        (RESOURCE, "env:read", False, {"env:write"}),
        (RESOURCE, "env:write", True, frozenset()),
        (RESOURCE, "org:read", True, frozenset()),
        (OTHER_RESOURCE, "env:read", True, frozenset()),
    ]


def test_a_granted_and_implied_scope_is_shown_as_both(authserver: AuthServer) -> None:
    client, _ = authserver.create_client("env:read env:write")
    both = scope_accesses(client)[0]
    assert (both.scope, both.granted, both.by) == ("env:read", True, {"env:write"})
