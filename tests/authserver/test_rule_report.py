"""The rules that are shown if a platform token stands for no client, and what differs in them."""

from typing import Any

import pytest

from gatehouse.authserver.workloads.rule_report import MAX_CLOSEST, rules_at_fault
from gatehouse.authserver.workloads.rules import Rule
from gatehouse.shared.service.checks import Check

CLAIMS = {"sub": "repo:acme/ops:ref:refs/heads/main", "repository_id": "74", "ref": "refs/heads/main"}
RULE = Rule("rule_1", "agent_1", {"repository_id": "74", "ref": "refs/heads/main"})


@pytest.mark.parametrize(
    ("changes", "differences"),
    [
        ({"ref": "refs/heads/dev"}, "ref is refs/heads/dev, not refs/heads/main"),
        ({"ref": "refs/heads/a b"}, 'ref is "refs/heads/a b", not refs/heads/main'),
        ({"ref": "x\x1b[2J"}, r"ref is x\x1b[2J, not refs/heads/main"),
        ({"ref": ["refs/heads/main"]}, "ref is a list; the rule requires refs/heads/main"),
        ({"ref": {"refs/heads/main": 1}}, "ref is an object; the rule requires refs/heads/main"),
        ({"repository_id": 74}, "repository_id is a number; the rule requires 74"),
        (
            {"repository_id": "75", "ref": None},
            "repository_id is 75, not 74; ref is null; the rule requires refs/heads/main",
        ),
    ],
)
def test_the_claims_that_differ_from_the_closest_rule_are_shown(changes: dict[str, Any], differences: str) -> None:
    assert rules_at_fault([RULE], CLAIMS) == []
    assert rules_at_fault([RULE], {**CLAIMS, **changes}) == [Check("rule_1", "failed", f"of agent_1: {differences}")]


def test_a_claim_that_the_token_does_not_have_is_missing() -> None:
    [check] = rules_at_fault([RULE], {"repository_id": "74"})
    assert check.detail == "of agent_1: ref is missing; the rule requires refs/heads/main"


def test_the_closest_rules_have_the_most_conditions_that_hold_and_then_the_longest_common_texts() -> None:
    subjects = [
        Rule(f"rule_{name}", "agent_1", {"sub": f"repo:{name}/ops:ref:refs/heads/main"})
        for name in ("zoo", "abc", "acme")
    ]
    environment = Rule("rule_env", "agent_1", {"repository_id": "74", "environment": "production"})
    claims = {**CLAIMS, "ref": "refs/heads/dev", "sub": "repo:acme/ops:ref:refs/heads/dev"}
    shown = [check.check for check in rules_at_fault([*subjects, RULE, environment], claims)]
    assert shown == ["rule_1", "rule_env", "rule_acme"]
    assert len(shown) == MAX_CLOSEST


def test_rules_of_two_clients_that_match_are_shown_with_the_commands_that_remove_them() -> None:
    other = Rule("rule_2", "agent_2", {"sub": CLAIMS["sub"]})
    distant = Rule("rule_3", "agent_3", {"sub": "repo:zoo/ops:ref:refs/heads/main"})
    assert rules_at_fault([RULE, distant, other], CLAIMS) == [
        Check(
            "rule_1",
            "failed",
            "of agent_1: repository_id=74 ref=refs/heads/main."
            " To remove it: authserver client trust remove agent_1 rule_1",
        ),
        Check(
            "rule_2",
            "failed",
            f"of agent_2: sub={CLAIMS['sub']}. To remove it: authserver client trust remove agent_2 rule_2",
        ),
    ]
