"""Trust rules: which claims of a platform token identify which client. Pure: no I/O.

A condition is the name of a claim and the exact text that it must have. All conditions of a rule must hold. There are
no patterns: `prod` must not match `prod-evil`, and the tenants of a platform choose branch names.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from gatehouse.authserver.workloads.kinds import NAMESPACE, Kind
from gatehouse.shared.protocol.encoding import compact_json
from gatehouse.shared.protocol.redaction import as_word, quoted
from gatehouse.shared.protocol.visible_text import escape_invisible, is_visible

MAX_CONDITIONS: Final = 16
MAX_TEXT: Final = 512
"""Characters of the name or the value of a claim."""

_BAD_ESCAPE = re.compile(r"~(?![01])")


class InvalidRule(ValueError):
    """The conditions are not a rule that can be trusted. The message says why, and how to fix it."""


@dataclass(frozen=True, slots=True)
class Rule:
    """The conditions under which a token of one issuer identifies a client."""

    rule_id: str
    client_id: str
    conditions: Mapping[str, str]
    """The value of each claim, by its name or JSON Pointer."""


class NoClient(Exception):
    """A token does not identify one client. The message is for the operator."""

    def __init__(self, reason: str, matching: Sequence[Rule] = ()) -> None:
        """Refuse a token, which matches these rules of several clients."""
        super().__init__(reason)
        self.matching = matching


MISSING: Final = object()
"""Stands for a claim that a token does not have."""


def find_member(claims: Mapping[str, Any], name: str) -> object:
    """Return a claim, of any type; MISSING if there is none.

    `name` is that of a member, or a JSON Pointer (RFC 6901) such as `/kubernetes.io/namespace`. Arrays are not
    entered: which of several values counts would depend on their order.
    """
    value: Any = claims
    for member in claim_path(name):
        if not isinstance(value, Mapping) or member not in value:
            return MISSING
        value = value[member]
    return value


def find_claim(claims: Mapping[str, Any], name: str) -> str | None:
    """Return the text of a claim, which is named as in `find_member`; None if it is missing or not a text."""
    value = find_member(claims, name)
    return value if isinstance(value, str) else None


def described(value: object) -> str:
    """Return what a message calls a claim: its text, in part, or what it is if it is no text."""
    if isinstance(value, str):
        return as_word(quoted(value))
    if value is MISSING:
        return "missing"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return "an object" if isinstance(value, Mapping) else "a number"


def claim_path(name: str) -> list[str]:
    """Return the names of the members that lead to a claim."""
    if not name.startswith("/"):
        return [name]
    return [member.replace("~1", "/").replace("~0", "~") for member in name[1:].split("/")]


def check_conditions(kind: Kind, issuer: str, conditions: Mapping[str, str]) -> dict[str, str]:
    """Return the conditions of a rule in a normal form, in which `/sub` is `sub`.

    Raises:
        InvalidRule: a name or value is malformed, or the conditions do not identify a workload. Everybody whom the
            platform serves shares the issuer, so a weaker rule would trust all of them.
    """
    normal: dict[str, str] = {}
    for given, value in conditions.items():
        _check_text("name of a claim", given)
        _check_text(f"value of {given}", value)
        if given.startswith("/") and _BAD_ESCAPE.search(given):
            raise InvalidRule(f"{given} is not a JSON Pointer: write ~0 for ~, and ~1 for / (RFC 6901).")
        name = given[1:] if given.count("/") == 1 and given.startswith("/") and "~" not in given else given
        if not all(claim_path(name)):
            raise InvalidRule(f"{given} names a member without a name. Write all of them, such as {NAMESPACE}.")
        if name in normal:
            raise InvalidRule(f"The claim {name} is named twice. Leave one of the two out.")
        normal[name] = value
    if not 0 < len(normal) <= MAX_CONDITIONS:
        raise InvalidRule(f"A rule has 1 to {MAX_CONDITIONS} claims.")
    if _identification(kind, normal) is None:
        raise InvalidRule(
            f"These claims do not identify a workload. Add {_identifying(kind)}."
            f" The claims to use: authserver issuer claims {kind.name}"
        )
    if kind.name == "spiffe" and not normal["sub"].startswith(f"{issuer}/"):
        raise InvalidRule(
            f"The sub must be a SPIFFE ID of the trust domain, such as {issuer}/ns/prod/sa/agent, not"
            f" {as_word(quoted(normal['sub']))}."
        )
    return normal


def _check_text(what: str, text: str) -> None:
    """Check the length of a text, and that a person sees all of it. Raises InvalidRule."""
    if not text:
        raise InvalidRule(f"The {what} is empty. Write NAME=VALUE, such as sub=agent.")
    if len(text) > MAX_TEXT:
        raise InvalidRule(f"The {what} has more than {MAX_TEXT} characters.")
    if not is_visible(text):
        raise InvalidRule(f"The {what} has a character that nobody sees: {escape_invisible(text)}")


def _identifying(kind: Kind) -> str:
    choices = []
    for identification in kind.identifications:
        names = " and ".join(identification.claims)
        *prefixes, last = identification.prefixes
        begin = f", which begins with {', '.join(prefixes)} or {last}" if last else ""
        further = f" together with {' or '.join(identification.with_one_of)}" if identification.with_one_of else ""
        choices.append(f"{names}{begin}{further}")
    pointer = next((one for found in kind.identifications for one in found.claims if one.startswith("/")), None)
    nested = f". The name of a nested member begins with a slash, such as {pointer}" if pointer is not None else ""
    return f"{', or '.join(choices)}{nested}"


def _identification(kind: Kind, conditions: Mapping[str, str]) -> tuple[str, ...] | None:
    """Return the identifying claims that the conditions contain; None if they identify no workload."""
    for identification in kind.identifications:
        required, one_of = identification.claims, identification.with_one_of
        if not all(name in conditions for name in required) or not conditions[required[0]].startswith(
            identification.prefixes
        ):
            continue
        if not one_of or any(name in conditions for name in one_of):
            return required
    return None


def rule_anchor(kind: Kind, conditions: Mapping[str, str]) -> bytes:
    """Return the digest by which a rule is found: of its identifying claims and their values.

    Raises:
        InvalidRule: the conditions do not identify a workload.
    """
    names = _identification(kind, conditions)
    if names is None:
        raise InvalidRule(f"the claims do not identify a workload of the kind {kind.name}")
    return _anchor(names, [conditions[name] for name in names])


def token_anchors(kind: Kind, claims: Mapping[str, Any]) -> tuple[bytes, ...]:
    """Return the digests of all rules that a token with these claims could match."""
    return tuple(_token_anchors(kind, claims))


def _token_anchors(kind: Kind, claims: Mapping[str, Any]) -> Iterator[bytes]:
    for identification in kind.identifications:
        values = [find_claim(claims, name) for name in identification.claims]
        if None not in values:
            yield _anchor(identification.claims, values)


def _anchor(names: Sequence[str], values: Sequence[str | None]) -> bytes:
    return hashlib.sha256(compact_json([names, values]).encode()).digest()


def unmet_conditions(rule: Rule, claims: Mapping[str, Any]) -> list[str]:
    """Return the names of the claims that do not have the value that a rule requires."""
    return [name for name, value in rule.conditions.items() if find_claim(claims, name) != value]


def remove_command(client_id: str, rule_id: str) -> str:
    """Return the command that removes a rule."""
    return f"authserver client trust remove {client_id} {rule_id}"


def may_both_match(one: Rule, other: Rule) -> bool:
    """Tell whether a token can match two rules that have the same anchor: no claim must have two values."""
    return all(other.conditions.get(name, value) == value for name, value in one.conditions.items())


def matching_rule(rules: Sequence[Rule], claims: Mapping[str, Any]) -> Rule:
    """Return a rule whose conditions all hold.

    Raises:
        NoClient: there is none, or there are rules of two clients.
    """
    matching = [rule for rule in rules if not unmet_conditions(rule, claims)]
    clients = sorted({rule.client_id for rule in matching})
    if not matching:
        raise NoClient(_why_none(rules, claims))
    if len(clients) > 1:
        raise NoClient(f"rules of several clients match: {', '.join(clients)}", matching)
    return matching[0]


def _why_none(rules: Sequence[Rule], claims: Mapping[str, Any]) -> str:
    if not rules:
        return "no rule of this issuer names this workload"
    closest = min(rules, key=lambda rule: len(unmet_conditions(rule, claims)))
    unmet = ", ".join(unmet_conditions(closest, claims))
    return f"no rule matches; the rule {closest.rule_id} of {closest.client_id} requires another {unmet}"
