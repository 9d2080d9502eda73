"""The trust rules to look at if a platform token stands for no client: all that match, or the closest. Pure: no I/O."""

from collections.abc import Mapping, Sequence
from itertools import takewhile
from typing import Any, Final

from gatehouse.authserver.workloads.rules import (
    MAX_TEXT,
    NoClient,
    Rule,
    described,
    find_claim,
    find_member,
    matching_rule,
    remove_command,
    unmet_conditions,
)
from gatehouse.shared.protocol.redaction import as_word, mask, printable
from gatehouse.shared.service.checks import Check

MAX_CLOSEST: Final = 3
"""Rules that are shown if none matches."""


def rules_at_fault(rules: Sequence[Rule], claims: Mapping[str, Any]) -> list[Check]:
    """Return the rules that match if they are of several clients, or the closest ones if none matches."""
    try:
        matching_rule(rules, claims)
    except NoClient as none:
        if none.matching:
            return [_rival(rule) for rule in none.matching]
        closest = sorted(rules, key=lambda rule: _distance(rule, claims))[:MAX_CLOSEST]
        return [Check(rule.rule_id, "failed", f"of {rule.client_id}: {_differences(rule, claims)}") for rule in closest]
    return []


def _rival(rule: Rule) -> Check:
    """Return a rule that matches beside that of another client, with the command that removes it."""
    command = remove_command(rule.client_id, rule.rule_id)
    detail = f"of {rule.client_id}: {shown_conditions(rule.conditions)}. To remove it: {command}"
    return Check(rule.rule_id, "failed", detail)


def _distance(rule: Rule, claims: Mapping[str, Any]) -> tuple[int, int, int]:
    """Return how far a rule is from a match: by the conditions that hold, those that do not, and common prefixes."""
    unmet = unmet_conditions(rule, claims)
    alike = sum(_common(rule.conditions[name], find_claim(claims, name)) for name in unmet)
    return len(unmet) - len(rule.conditions), len(unmet), -alike


def _differences(rule: Rule, claims: Mapping[str, Any]) -> str:
    differences = []
    for name in unmet_conditions(rule, claims):
        found, required = find_member(claims, name), shown_claim(rule.conditions[name])
        if isinstance(found, str):
            differences.append(f"{name} is {shown_claim(found)}, not {required}")
        else:
            differences.append(f"{name} is {described(found)}; the rule requires {required}")
    return "; ".join(differences)


def _common(one: str, other: str | None) -> int:
    """Return the number of characters that two texts begin with alike."""
    pairs = zip(one, other or "", strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def shown_conditions(conditions: Mapping[str, str]) -> str:
    """Return conditions, or the claims of a token, for people."""
    return " ".join(f"{name}={shown_claim(value)}" for name, value in conditions.items())


def shown_claim(text: str) -> str:
    """Return a claim that the administrator must read as a whole, without secrets. Its text may be of anybody."""
    return as_word(printable(mask(text)[:MAX_TEXT]))
