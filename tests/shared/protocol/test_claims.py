"""The claims of an access token, to and from JSON."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.claims import (
    MAX_NUMERIC_DATE,
    RESERVED_CLAIMS,
    AccessClaims,
    InvalidClaims,
    StatusReference,
    check_static_claim,
    is_fractional_date,
    is_numeric_date,
)

CLAIMS = AccessClaims(
    iss="https://as.example.com",
    sub="agent_1",
    client_id="agent_1",
    aud="https://mcp.example.com/mcp",
    iat=1_800_000_000,
    exp=1_800_000_300,
    jti="jti-1",
    scope=frozenset({"env:read", "env:write"}),
    static={"workspace_id": "wks_1"},
    status=StatusReference("https://as.example.com/status-lists/0123456789ab", 7),
)
LATEST = 253_402_300_799


def refusal_of(**changes: Any) -> str:
    with pytest.raises(InvalidClaims) as refusal:
        AccessClaims.from_json({**CLAIMS.to_json(), **changes})
    return str(refusal.value)


def test_claims_survive_a_round_trip() -> None:
    assert AccessClaims.from_json(CLAIMS.to_json()) == CLAIMS
    assert CLAIMS.to_json() == {
        "iss": "https://as.example.com",
        "sub": "agent_1",
        "client_id": "agent_1",
        "aud": "https://mcp.example.com/mcp",
        "iat": 1_800_000_000,
        "exp": 1_800_000_300,
        "jti": "jti-1",
        "scope": "env:read env:write",
        "status": {"status_list": {"idx": 7, "uri": "https://as.example.com/status-lists/0123456789ab"}},
        "workspace_id": "wks_1",
    }


def test_a_static_claim_never_replaces_a_standard_claim() -> None:
    """CVE-2026-16102 class: `sub` or `scope` from a client's own metadata."""
    impostor = replace(CLAIMS, static={"sub": "admin", "scope": "everything", "exp": "0"})
    assert AccessClaims.from_json(impostor.to_json()) == replace(CLAIMS, static={})


@pytest.mark.parametrize("name", sorted(RESERVED_CLAIMS))
def test_a_reserved_name_is_not_a_static_claim(name: str) -> None:
    with pytest.raises(InvalidClaims, match=f"{name} is a reserved claim"):
        check_static_claim(name, "value")
    extended = {**CLAIMS.to_json(), name: CLAIMS.to_json().get(name, "value")}
    assert name not in AccessClaims.from_json(extended).static


@pytest.mark.parametrize(
    "name", ["", "A", "1st", "_x", "with space", "a-b", "a.b", "é", "x\n", "a" * 65, "https://example.com/x"]
)
def test_a_malformed_name_is_not_a_static_claim(name: str) -> None:
    check_static_claim("workspace_id", "wks_1")
    with pytest.raises(InvalidClaims, match="a claim name is"):
        check_static_claim(name, "value")


@pytest.mark.parametrize("value", ["", "v" * 257, "a\nb", "\x00", "é", "\x1b[31m"], ids=repr)
def test_a_static_value_is_short_printable_text(value: str) -> None:
    check_static_claim("x", "v" * 256)
    with pytest.raises(InvalidClaims, match="the value of x"):
        check_static_claim("x", value)


def test_claims_that_are_not_text_are_ignored() -> None:
    claims = {**CLAIMS.to_json(), "number": 1, "list": ["a"], "object": {"a": "b"}}
    assert AccessClaims.from_json(claims) == CLAIMS


def test_read_claims_are_immutable() -> None:
    claims = AccessClaims.from_json(CLAIMS.to_json())
    with pytest.raises(TypeError):
        claims.static["workspace_id"] = "wks_2"  # type: ignore[index]


@pytest.mark.parametrize("claim", sorted(CLAIMS.to_json().keys() - {"workspace_id", "status"}))
def test_a_missing_claim_is_named(claim: str) -> None:
    without = {name: value for name, value in CLAIMS.to_json().items() if name != claim}
    with pytest.raises(InvalidClaims, match=f"^{claim} is missing$"):
        AccessClaims.from_json(without)


@pytest.mark.parametrize("claim", ["iat", "exp"])
def test_a_time_is_in_whole_seconds_up_to_the_year_9999(claim: str) -> None:
    for edge in (0, LATEST):
        assert getattr(AccessClaims.from_json({**CLAIMS.to_json(), claim: edge}), claim) == edge
    for value in (-1, LATEST + 1, 10**30, True, False, 1.0, "1", None, [1], float("inf")):
        assert refusal_of(**{claim: value}) == f"{claim} is not a whole number of seconds"


@pytest.mark.parametrize("scope", ["a  b", " a", 'a"', "a\nb"], ids=repr)
def test_a_malformed_scope_is_refused(scope: str) -> None:
    assert refusal_of(scope=scope) == "scope is malformed"


def test_the_subject_is_the_client() -> None:
    """RFC 9068 2.2, client credentials."""
    assert refusal_of(sub="admin") == "sub is not the client"
    assert refusal_of(client_id="other") == "sub is not the client"


@given(
    st.sampled_from(sorted(CLAIMS.to_json())), st.none() | st.booleans() | st.floats() | st.lists(st.text()) | st.text()
)
def test_no_value_raises_another_error_or_is_repeated(claim: str, value: Any) -> None:
    try:
        AccessClaims.from_json({**CLAIMS.to_json(), claim: value})
    except InvalidClaims as refusal:
        assert str(refusal).split(" is ")[0] in CLAIMS.to_json()


@pytest.mark.divergence("D-32")
@pytest.mark.parametrize(
    "status",
    [
        None,
        "x",
        {},
        {"status_list": {}},
        {"status_list": {"idx": 1}},
        {"status_list": {"uri": "https://as.example.com/l"}},
        {"status_list": {"idx": "1", "uri": "https://as.example.com/l"}},
        {"status_list": {"idx": True, "uri": "https://as.example.com/l"}},
        {"status_list": {"idx": -1, "uri": "https://as.example.com/l"}},
        {"status_list": {"idx": 1.0, "uri": "https://as.example.com/l"}},
        {"status_list": {"idx": 1, "uri": 2}},
        {"status_list": {"idx": 1, "uri": "https://as.example.com/l", "more": 1}},
        {"status_list": {"idx": 1, "uri": "https://as.example.com/l"}, "other_mechanism": {}},
    ],
    ids=repr,
)
def test_a_status_is_one_reference_to_a_status_list(status: Any) -> None:
    """A second status mechanism would never be checked."""
    assert refusal_of(status=status) == "status is not one reference to a status list"


def test_a_token_without_a_status_can_be_read() -> None:
    without = replace(CLAIMS, status=None)
    assert "status" not in without.to_json()
    assert AccessClaims.from_json(without.to_json()).status is None


@pytest.mark.parametrize("value", [0, 1_800_000_000, 253402300799])
def test_whole_seconds_up_to_the_year_9999_are_a_numeric_date(value: int) -> None:
    assert is_numeric_date(value)
    assert MAX_NUMERIC_DATE == 253402300799


@pytest.mark.parametrize("value", [-1, 253402300800, 1.0, 1.5, True, False, None, "1800000000", [1]], ids=repr)
def test_any_other_value_is_not_a_date(value: Any) -> None:
    assert not is_numeric_date(value)


def test_a_date_has_a_fraction_only_where_it_may() -> None:
    for value in (0, 1.0, 1_800_000_000.5, 253402300799.0):
        assert is_fractional_date(value)
    for other in (-0.5, 253402300799.5, 1e30, True, None, "1.5", [1.5], float("nan"), float("inf")):
        assert not is_fractional_date(other)
