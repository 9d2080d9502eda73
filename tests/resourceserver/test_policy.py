"""The policy: decisions by scopes and their closure alone."""

from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from gatehouse.resourceserver import policy
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, Scope, ToolGroup
from gatehouse.shared.protocol.claims import AccessClaims

SCOPES = ("a:admin", "a:read", "a:write", "b:read", "b:write")
IMPLIES = {"a:admin": ("a:write", "b:read"), "a:write": ("a:read",), "b:write": ("b:read",)}


class Nothing(BaseModel):
    """Nothing."""


def catalogue_of(**scopes_by_tool: list[str]) -> Catalogue:
    """Return a catalogue of tools that need the given scopes; an empty list is any valid token."""
    group = ToolGroup()
    for name, scopes in scopes_by_tool.items():

        async def tool() -> Nothing:
            """Do nothing."""
            return Nothing()

        tool.__name__ = name
        group.tool(scopes=scopes or ANY_VALID_TOKEN, read_only=True)(tool)
    return Catalogue("test", [Scope(scope, "", IMPLIES.get(scope, ())) for scope in SCOPES], [group])


PROBED = catalogue_of(probe=["a:read"])


def claims_of(*scopes: str) -> AccessClaims:
    return AccessClaims("iss", "sub", "client", "aud", 0, 1, "jti", frozenset(scopes))


def reachable(scopes: frozenset[str]) -> frozenset[str]:
    """Return the closure, computed in another way than the product does."""
    grown = scopes | {implied for scope in scopes for implied in IMPLIES.get(scope, ())}
    return grown if grown == scopes else reachable(grown)


@given(
    needed=st.lists(st.sampled_from(SCOPES), unique=True), held=st.frozensets(st.sampled_from([*SCOPES, "c:unknown"]))
)
def test_a_call_is_allowed_exactly_if_the_closure_has_its_scopes(needed: list[str], held: frozenset[str]) -> None:
    catalogue = catalogue_of(probe=needed)
    decision = policy.decide(catalogue, claims_of(*held), "probe")
    assert isinstance(decision, policy.Allowed) == (frozenset(needed) <= reachable(held))
    if isinstance(decision, policy.Forbidden):
        assert isinstance(policy.decide(catalogue, claims_of(*decision.scope), "probe"), policy.Allowed)
        assert decision.scope == policy.required_scope(catalogue, "probe")


@given(needed=st.lists(st.sampled_from(SCOPES), unique=True, min_size=1))
def test_the_required_scopes_are_sufficient_and_minimal(needed: list[str]) -> None:
    required = policy.required_scope(catalogue_of(probe=needed), "probe")
    assert frozenset(needed) <= reachable(required)
    for scope in required:
        assert not frozenset(needed) <= reachable(required - {scope})


def test_a_hierarchy_is_transitive() -> None:
    assert isinstance(policy.decide(catalogue_of(probe=["a:read"]), claims_of("a:admin"), "probe"), policy.Allowed)


def test_an_implication_has_one_direction() -> None:
    decision = policy.decide(catalogue_of(probe=["a:write"]), claims_of("a:read", "b:write"), "probe")
    assert isinstance(decision, policy.Forbidden)
    assert decision.scope == {"a:write"}


def test_scopes_are_compared_exactly() -> None:
    catalogue = catalogue_of(probe=["a:read"])
    for near in ("A:READ", "a:rea", "a:read:all", "a:*", "*", "a"):
        assert isinstance(policy.decide(catalogue, claims_of(near), "probe"), policy.Forbidden)


def test_a_tool_for_any_valid_token_requires_no_scope() -> None:
    catalogue = catalogue_of(probe=[])
    assert isinstance(policy.decide(catalogue, claims_of("c:unknown"), "probe"), policy.Allowed)
    assert policy.required_scope(catalogue, "probe") == frozenset()


@given(name=st.text().filter(lambda name: name != "probe"))
def test_a_tool_outside_the_catalogue_is_unknown(name: str) -> None:
    assert isinstance(policy.decide(PROBED, claims_of(*SCOPES), "probe"), policy.Allowed)
    assert isinstance(policy.decide(PROBED, claims_of(*SCOPES), name), policy.Unknown)
    assert policy.required_scope(PROBED, name) == frozenset()


@given(held=st.frozensets(st.sampled_from(SCOPES), min_size=1))
def test_the_callable_tools_are_the_allowed_ones_in_a_fixed_order(held: frozenset[str]) -> None:
    catalogue = catalogue_of(zebra=["a:read"], ant=["b:write"], mole=[], bee=["a:write", "b:read"])
    names = [tool.name for tool in policy.callable_tools(catalogue, claims_of(*held))]
    allowed = {
        name for name in catalogue.tools if isinstance(policy.decide(catalogue, claims_of(*held), name), policy.Allowed)
    }
    assert names == sorted(allowed)
