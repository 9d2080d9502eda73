"""The rules for the arguments of an upstream's tool."""

from typing import Any

import pytest

from gatehouse.resourceserver.catalogue.argument_rules import (
    ArgumentRule,
    ArgumentsRefused,
    apply_rules,
    compile_pattern,
    unknown_arguments,
)
from gatehouse.shared.protocol.claims import AccessClaims

CLAIMS = AccessClaims(
    "https://auth.example.com", "a", "a", "https://r.example", 0, 300, "j", frozenset(), {"workspace_id": "wks_1"}
)
SCHEMA = {"type": "object", "properties": {"x": {}, "y": {}}, "additionalProperties": True}


def refusal(rule: ArgumentRule, arguments: dict[str, Any]) -> ArgumentsRefused:
    with pytest.raises(ArgumentsRefused) as refused:
        apply_rules({"x": rule}, SCHEMA, arguments, CLAIMS)
    return refused.value


def test_arguments_without_rules_are_not_changed() -> None:
    arguments = {"anything": [1]}
    assert apply_rules({}, {}, arguments, CLAIMS) is arguments


@pytest.mark.parametrize(
    ("rule", "accepted", "refused"),
    [
        pytest.param(
            ArgumentRule(enum=("a", 1, 2.5, True)),
            ["a", 1, 2.5, True],
            ["A", "1", "a ", 1.0, 2, False, None, [], {}],
            id="enum",
        ),
        pytest.param(ArgumentRule(enum=(1.0, False)), [1.0, False], [1, True, 0, 0.0], id="enum of a float"),
        pytest.param(
            ArgumentRule(pattern="a|b[0-9]"), ["a", "b1"], ["ab1", "xa", "a\n", "", "b", 1, None, ["a"]], id="pattern"
        ),
        pytest.param(ArgumentRule(pattern="(?i)a"), ["a", "A"], ["b", "aa"], id="pattern with a flag"),
        pytest.param(ArgumentRule(max_length=2), ["", "ab", "\U0001f600\U0001f600"], ["abc", 1, None, []], id="length"),
        pytest.param(ArgumentRule(minimum=1, maximum=3), [1, 1.0, 3, 2.5], [0, 3.1, "2", True, None, [2]], id="range"),
        pytest.param(ArgumentRule(minimum=2**53), [2**53, 2**53 + 1], [2**53 - 1, float("nan")], id="minimum"),
        pytest.param(ArgumentRule(maximum=0.5), [0, -(10**400)], [1, float("nan"), "0", False], id="maximum"),
        pytest.param(ArgumentRule(pattern="a*", max_length=2), ["", "aa"], ["aaa", "b"], id="two parts"),
        pytest.param(ArgumentRule(required=True), [0, False, "", []], [None], id="required"),
    ],
)
def test_a_rule_accepts_exactly_its_values(rule: ArgumentRule, accepted: list[Any], refused: list[Any]) -> None:
    for value in accepted:
        assert apply_rules({"x": rule}, SCHEMA, {"x": value, "y": 1}, CLAIMS) == {"x": value, "y": 1}
    for value in refused:
        refusal(rule, {"x": value})


def test_an_argument_may_be_absent_unless_it_is_required() -> None:
    assert apply_rules({"x": ArgumentRule(max_length=1)}, SCHEMA, {}, CLAIMS) == {}
    assert "x: is required" in str(refusal(ArgumentRule(required=True, max_length=1), {}))


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        (ArgumentRule(enum=("a", 1, True)), 'x: must be one of "a", 1, true.'),
        (ArgumentRule(pattern="a+", max_length=2), "x: must be a string that matches a+ and a string of at most 2"),
        (ArgumentRule(minimum=1, maximum=2.5), "x: must be a number of at least 1 and a number of at most 2.5."),
        (ArgumentRule(required=True), "x: must be other than null."),
    ],
)
def test_a_refusal_names_argument_and_rule(rule: ArgumentRule, text: str) -> None:
    refused = refusal(rule, {"x": None})
    assert str(refused).startswith("The arguments violate the rules of this server: x: ")
    assert text in str(refused)
    assert refused.reason == str(refused)


def test_all_violations_are_named_and_no_value() -> None:
    rules = {"x": ArgumentRule(max_length=1), "y": ArgumentRule(claim="workspace_id")}
    with pytest.raises(ArgumentsRefused) as refused:
        apply_rules(rules, SCHEMA, {"x": "hunter2", "y": "hunter3", "hunter4": 1}, CLAIMS)
    assert str(refused.value) == (
        "The arguments violate the rules of this server: unknown argument; the arguments are: x, y; "
        "x: must be a string of at most 1 characters; "
        "y: must equal the claim workspace_id of your token; omit it, and it is added."
    )


@pytest.mark.parametrize(("claim", "value"), [("workspace_id", "wks_1"), ("client_id", "a"), ("sub", "a")])
def test_a_claim_is_added_if_the_argument_is_absent(claim: str, value: str) -> None:
    rules = {"x": ArgumentRule(claim=claim)}
    assert apply_rules(rules, SCHEMA, {"y": 1}, CLAIMS) == {"x": value, "y": 1}
    assert apply_rules(rules, SCHEMA, {"x": value}, CLAIMS) == {"x": value}


@pytest.mark.parametrize("sent", ["wks_2", "WKS_1", "wks_1 ", "", None, 1, ["wks_1"], {"workspace_id": "wks_1"}])
def test_another_value_than_that_of_the_claim_is_refused(sent: object) -> None:
    assert "wks_1" not in str(refusal(ArgumentRule(claim="workspace_id"), {"x": sent}))


def test_a_caller_without_the_claim_is_refused_with_the_command_that_sets_it() -> None:
    refused = refusal(ArgumentRule(claim="region"), {"x": "eu"})
    assert "needs the claim region for the argument x, and your token does not have it" in str(refused)
    assert refused.reason == "the client lacks the claim region, which the rule for the argument x needs"
    assert refused.remediation == "authserver client update a --claim region=VALUE"


@pytest.mark.parametrize("schema", [{}, {"properties": []}, {"properties": {"y": {}}}, {"$ref": "#/$defs/x"}])
def test_a_rule_for_an_argument_that_the_tool_lacks_is_found(schema: dict[str, Any]) -> None:
    rules = {"x": ArgumentRule(required=True), "a": ArgumentRule(required=True)}
    assert unknown_arguments(rules, schema) == ["a", "x"]
    assert unknown_arguments({"x": ArgumentRule(required=True)}, SCHEMA) == []


def test_a_pattern_is_compiled_once() -> None:
    assert compile_pattern("[a-z]{3}") is compile_pattern("[a-z]{3}")


def test_a_pattern_that_ends_in_a_comment_is_refused() -> None:
    """The comment would contain the end of the group that makes the pattern match the whole value."""
    assert compile_pattern("(?x) a # comment\n").isinstance_python("a")
    with pytest.raises(ValueError, match="unclosed group"):
        compile_pattern("(?x) a # comment")
