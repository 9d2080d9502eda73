"""Trust rules: which conditions are a rule, and which claims they match."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.clock import FakeClock
from support.platforms import PLATFORMS

from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.rules import (
    MAX_CONDITIONS,
    MAX_TEXT,
    InvalidRule,
    NoClient,
    Rule,
    check_conditions,
    described,
    find_claim,
    find_member,
    matching_rule,
    may_both_match,
    rule_anchor,
    token_anchors,
    unmet_conditions,
)

ISSUER = "https://platform.example.com"
SPIFFE = "spiffe://example.org"


def check(conditions: Mapping[str, str], kind: str = "oidc", issuer: str = ISSUER) -> dict[str, str]:
    return check_conditions(KINDS[kind], issuer, conditions)


@pytest.mark.parametrize("kind", PLATFORMS)
def test_the_rule_of_a_workload_is_found_by_its_token_and_matches(kind: str) -> None:
    platform = PLATFORMS[kind](FakeClock())
    conditions = check(platform.conditions, kind, platform.issuer)
    assert conditions == platform.conditions
    claims = platform.claims()
    assert rule_anchor(KINDS[kind], conditions) in token_anchors(KINDS[kind], claims)
    assert unmet_conditions(Rule("rule_1", "agent_1", conditions), claims) == []


@pytest.mark.parametrize(
    ("conditions", "problem"),
    [
        pytest.param({}, f"A rule has 1 to {MAX_CONDITIONS} claims.", id="none"),
        pytest.param(
            {"sub": "agent", **{f"c{number}": "x" for number in range(MAX_CONDITIONS)}},
            f"A rule has 1 to {MAX_CONDITIONS} claims.",
            id="too many",
        ),
        pytest.param({"": "agent"}, "The name of a claim is empty. Write NAME=VALUE, such as", id="no name"),
        pytest.param({"sub": ""}, "The value of sub is empty. Write NAME=VALUE, such as sub=agent", id="no value"),
        pytest.param(
            {"sub": "a" * (MAX_TEXT + 1)}, f"The value of sub has more than {MAX_TEXT} characters", id="long value"
        ),
        pytest.param(
            {"c" * (MAX_TEXT + 1): "x"}, f"The name of a claim has more than {MAX_TEXT} characters", id="long name"
        ),
        pytest.param(
            {"sub": "agent\n"}, r"The value of sub has a character that nobody sees: agent\n", id="line break"
        ),
        pytest.param(
            {"su\u200bb": "a"}, r"The name of a claim has a character that nobody sees: su\u200bb", id="hidden"
        ),
        pytest.param({"sub": "agent", "/a~2": "x"}, "/a~2 is not a JSON Pointer", id="bad escape"),
        pytest.param({"sub": "agent", "/a~": "x"}, "/a~ is not a JSON Pointer", id="unfinished escape"),
        pytest.param({"sub": "agent", "/": "x"}, "/ names a member without a name.", id="empty pointer"),
        pytest.param({"sub": "agent", "/a//b": "x"}, "/a//b names a member without a name.", id="empty member"),
        pytest.param({"sub": "agent", "/sub": "agent"}, "The claim sub is named twice.", id="named twice"),
    ],
)
def test_malformed_conditions_are_refused(conditions: dict[str, str], problem: str) -> None:
    assert check({"sub": "agent"})
    with pytest.raises(InvalidRule) as refusal:
        check(conditions)
    assert str(refusal.value).startswith(problem)


def test_the_limits_of_a_rule_are_inclusive() -> None:
    conditions = {"sub": "a" * MAX_TEXT, **{f"c{number}": "x" for number in range(MAX_CONDITIONS - 1)}}
    assert check(conditions) == conditions


@pytest.mark.parametrize(
    ("kind", "conditions", "missing"),
    [
        ("kubernetes", {"iss": ISSUER}, "sub, or /kubernetes.io/namespace and /kubernetes.io/serviceaccount/name"),
        ("kubernetes", {"/kubernetes.io/namespace": "prod"}, "sub, or /kubernetes.io/namespace and"),
        ("kubernetes", {"/kubernetes.io/serviceaccount/name": "agent"}, "sub, or /kubernetes.io/namespace and"),
        (
            "github",
            {"repository": "acme/ops", "ref": "refs/heads/main"},
            "or repository_id together with environment or ref. The claims to use: authserver issuer claims github",
        ),
        (
            "github",
            {"repository_owner": "acme"},
            "or repository_id together with environment or ref. The claims to use: authserver issuer claims github",
        ),
        (
            "github",
            {"repository_id": "1"},
            "or repository_id together with environment or ref. The claims to use: authserver issuer claims github",
        ),
        (
            "github",
            {"repository_id": "1", "event_name": "push"},
            "or repository_id together with environment or ref. The claims to use: authserver issuer claims github",
        ),
        (
            "github",
            {"environment": "prod"},
            "or repository_id together with environment or ref. The claims to use: authserver issuer claims github",
        ),
        (
            "kubernetes",
            {"kubernetes.io/namespace": "prod"},
            "nested member begins with a slash, such as /kubernetes.io/na",
        ),
        ("gitlab", {"project_path": "acme/ops", "ref": "main"}, "sub."),
        ("spiffe", {"iss": ISSUER}, "sub."),
        ("oidc", {"azp": "agent", "aud": ISSUER}, "sub."),
        ("oidc", {"/nested/sub": "agent"}, "sub."),
    ],
)
def test_claims_that_identify_no_workload_are_refused(kind: str, conditions: dict[str, str], missing: str) -> None:
    """Every repository and every pod shares the issuer: such a rule would trust all of them."""
    issuer = SPIFFE if kind == "spiffe" else ISSUER
    sub = {"spiffe": f"{SPIFFE}/agent", "github": "repo:acme/ops:ref:refs/heads/main"}.get(kind, "agent")
    assert check({**conditions, "sub": sub}, kind, issuer)
    with pytest.raises(InvalidRule) as refusal:
        check(conditions, kind, issuer)
    assert str(refusal.value).startswith("These claims do not identify a workload. Add sub")
    assert missing in str(refusal.value)
    with pytest.raises(InvalidRule, match="do not identify a workload"):
        rule_anchor(KINDS[kind], conditions)


@pytest.mark.parametrize(
    ("kind", "conditions"),
    [
        ("kubernetes", {"/kubernetes.io/namespace": "prod", "/kubernetes.io/serviceaccount/name": "agent"}),
        ("github", {"repository_id": "1", "ref": "refs/heads/main"}),
        ("github", {"repository_id": "1", "environment": "prod"}),
    ],
)
def test_a_complete_set_identifies_a_workload_without_its_subject(kind: str, conditions: dict[str, str]) -> None:
    assert check(conditions, kind) == conditions


@pytest.mark.parametrize("sub", ["spiffe://example.org.evil.example/agent", "spiffe://other.example/agent", "agent"])
def test_a_spiffe_rule_names_an_id_of_its_trust_domain(sub: str) -> None:
    assert check({"sub": f"{SPIFFE}/agent"}, "spiffe", SPIFFE)
    with pytest.raises(InvalidRule, match=f"must be a SPIFFE ID of the trust domain, such as .*, not {sub}"):
        check({"sub": sub}, "spiffe", SPIFFE)


def test_a_pointer_to_a_member_of_the_top_is_its_name() -> None:
    assert check({"/sub": "agent", "/a~1b": "x"}) == {"sub": "agent", "/a~1b": "x"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sub", "agent"),
        ("/sub", "agent"),
        ("kubernetes.io/x", "slash"),
        ("/kubernetes.io/namespace", "prod"),
        ("/kubernetes.io/serviceaccount/name", "agent"),
        ("/kubernetes.io~1x", "slash"),
        ("/a~0b", "tilde"),
        ("/~01", "tilde and one"),
        ("kubernetes.io", None),
        ("/kubernetes.io", None),
        ("/kubernetes.io/pod/name", None),
        ("/sub/0", None),
        ("/list/0", None),
        ("list", None),
        ("number", None),
        ("true", None),
        ("null", None),
        ("missing", None),
        ("/missing/name", None),
    ],
)
def test_a_claim_is_the_text_that_a_name_or_pointer_leads_to(name: str, value: str | None) -> None:
    """RFC 6901 4. Arrays are not entered."""
    claims = {
        "sub": "agent",
        "kubernetes.io": {"namespace": "prod", "serviceaccount": {"name": "agent"}},
        "kubernetes.io/x": "slash",
        "a~b": "tilde",
        "~1": "tilde and one",
        "list": ["agent"],
        "number": 7,
        "true": True,
        "null": None,
    }
    assert find_claim(claims, name) == value


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("text", "agent"),
        ("words", '"a b"'),
        ("empty", '""'),
        ("list", "a list"),
        ("nothing", "an empty list"),
        ("object", "an object"),
        ("number", "a number"),
        ("true", "true"),
        ("null", "null"),
        ("absent", "missing"),
        ("/object/absent", "missing"),
        ("/text/absent", "missing"),
        ("/object/name", "agent"),
    ],
)
def test_a_claim_is_described_by_its_text_or_by_what_it_is(name: str, told: str) -> None:
    claims = {
        "text": "agent",
        "words": "a b",
        "empty": "",
        "list": ["a"],
        "nothing": [],
        "object": {"name": "agent"},
        "number": 7,
        "true": True,
        "null": None,
    }
    assert described(find_member(claims, name)) == told


def test_a_token_without_identifying_claims_has_no_anchor() -> None:
    assert token_anchors(KINDS["github"], {"repository": "acme/ops"}) == ()
    assert token_anchors(KINDS["oidc"], {"sub": ["agent"]}) == ()


def test_anchors_differ_by_value_and_by_claim() -> None:
    kind = KINDS["kubernetes"]
    pods: list[dict[str, Any]] = [
        {"sub": "prod"},
        {"sub": "prod-evil"},
        {"kubernetes.io": {"namespace": "prod", "serviceaccount": {"name": "agent"}}},
        {"kubernetes.io": {"namespace": "prodagent", "serviceaccount": {"name": ""}}},
        {"kubernetes.io": {"namespace": "agent", "serviceaccount": {"name": "prod"}}},
    ]
    anchors = [anchor for claims in pods for anchor in token_anchors(kind, claims)]
    assert len(anchors) == len(set(anchors)) == len(pods)


RULE = Rule("rule_1", "agent_1", {"sub": "agent", "ref": "main"})
SAME_CLIENT = Rule("rule_2", "agent_1", {"sub": "agent"})
OTHER_CLIENT = Rule("rule_3", "agent_2", {"sub": "agent"})


def test_all_conditions_of_a_rule_must_hold() -> None:
    assert matching_rule([RULE], {"sub": "agent", "ref": "main"}) is RULE
    for claims, unmet in (({"sub": "agent", "ref": "dev"}, ["ref"]), ({"ref": "main"}, ["sub"]), ({}, ["sub", "ref"])):
        assert unmet_conditions(RULE, claims) == unmet
        with pytest.raises(NoClient) as none:
            matching_rule([RULE], claims)
        expected = f"no rule matches; the rule rule_1 of agent_1 requires another {', '.join(unmet)}"
        assert str(none.value) == expected


def test_several_matching_rules_of_one_client_are_one_client() -> None:
    assert matching_rule([RULE, SAME_CLIENT], {"sub": "agent", "ref": "main"}).client_id == "agent_1"


def test_rules_of_two_clients_identify_none() -> None:
    assert matching_rule([SAME_CLIENT], {"sub": "agent"}) is SAME_CLIENT
    with pytest.raises(NoClient, match=r"^rules of several clients match: agent_1, agent_2$") as none:
        matching_rule([OTHER_CLIENT, SAME_CLIENT], {"sub": "agent"})
    assert none.value.matching == [OTHER_CLIENT, SAME_CLIENT]


@pytest.mark.parametrize(
    ("conditions", "possible"),
    [
        ({"sub": "agent"}, True),
        ({"sub": "agent", "uid": "1"}, True),
        ({"sub": "agent", "ref": "main"}, True),
        ({"sub": "agent", "ref": "dev"}, False),
    ],
)
def test_two_rules_may_both_match_unless_a_claim_would_have_two_values(
    conditions: dict[str, str], possible: bool
) -> None:
    other = Rule("rule_9", "agent_9", conditions)
    assert may_both_match(RULE, other) is may_both_match(other, RULE) is possible


def test_no_rules_are_no_client() -> None:
    with pytest.raises(NoClient, match=r"^no rule of this issuer names this workload$"):
        matching_rule([], {"sub": "agent"})


def test_the_rule_with_the_fewest_unmet_claims_is_named() -> None:
    with pytest.raises(NoClient, match=r"requires another ref$"):
        matching_rule([Rule("rule_9", "agent_9", {"sub": "a", "ref": "b"}), RULE], {"sub": "agent", "ref": "dev"})


VALUE = st.text(st.characters(codec="ascii", categories=("L", "N", "P")), min_size=1, max_size=40)


@given(VALUE, VALUE)
def test_a_rule_matches_its_own_value_and_no_other(value: str, other: str) -> None:
    """Prefix matching lets `prod` match `prod-evil`; a pattern lets a tenant's branch name match."""
    rule = Rule("rule_1", "agent_1", check({"sub": value}))
    assert unmet_conditions(rule, {"sub": value}) == []
    for wrong in (value + other, other + value, value.swapcase() + "x", f"{value} ", [value], {"sub": value}):
        assert unmet_conditions(rule, {"sub": wrong}) == ["sub"]
