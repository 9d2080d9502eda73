"""The rules for the arguments of an upstream's tool, which go further than its input schema.

A rule is for one argument of the tool, by its name. Values within an argument have no rules. Nothing is converted or
normalized: "5" is not 5, and full-width digits are not ASCII digits.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from pydantic_core import SchemaError, SchemaValidator, core_schema

from gatehouse.resourceserver.catalogue.tool import ToolFailed
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.encoding import format_json
from gatehouse.shared.protocol.redaction import printable, quoted
from gatehouse.shared.service.remediation import client_command

CALLER_CLAIMS: Final = frozenset({"client_id", "sub"})
"""Claims of every token that a rule can name, besides those that an admin sets on a client."""

_MAX_NAMED: Final = 50
"""Arguments that a refusal names. An upstream may have thousands, with long names."""

_PATTERNS: Final = 4096
"""Compiled patterns that are kept: more than one policy file has."""


class ArgumentsRefused(ToolFailed):
    """The arguments violate a rule. The text names the argument and the rule, and repeats no value."""

    outcome = "refused"


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """The rule for one argument. Every part that is set must hold."""

    enum: tuple[str | int | float | bool, ...] | None = None
    """The value must have the type and the value of one of these: 1 is neither 1.0 nor true."""
    pattern: str | None = None
    """A regular expression that the whole value must match, in linear time (the syntax of Rust's regex crate)."""
    max_length: int | None = None
    """Characters (Unicode code points)."""
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    """The argument must be sent, and not be null."""
    claim: str | None = None
    """The claim of the caller that the argument must equal. It is added if the caller does not send it.

    No other part is set then.
    """


def apply_rules(
    rules: Mapping[str, ArgumentRule],
    input_schema: Mapping[str, Any],
    arguments: Mapping[str, Any],
    claims: AccessClaims,
) -> Mapping[str, Any]:
    """Return the arguments to send: those of the caller, and those that come from its claims.

    With rules, only arguments that the input schema names are accepted, even if it allows additional ones: another name
    for an argument would bypass its rule.

    Raises:
        ArgumentsRefused: an argument violates a rule, is not in the schema, or the caller lacks a claim.
    """
    if not rules:
        return arguments
    injected = {name: _claim(claims, name, rule.claim) for name, rule in rules.items() if rule.claim is not None}
    if problems := list(_problems(rules, _properties(input_schema), arguments, injected)):
        text = f"The arguments violate the rules of this server: {'; '.join(problems)}."
        raise ArgumentsRefused(text, reason=text)
    return {**arguments, **injected}


def unknown_arguments(rules: Mapping[str, ArgumentRule], input_schema: Mapping[str, Any]) -> list[str]:
    """Return the arguments that have a rule, and that a tool does not have.

    Such a rule protects nothing: the upstream may have renamed the argument. The tool must not be served.
    """
    return sorted(rules.keys() - _properties(input_schema).keys())


@lru_cache(_PATTERNS)
def compile_pattern(pattern: str) -> SchemaValidator:
    """Return the validator of strings that match a pattern as a whole. Raises ValueError if the pattern is invalid."""
    # Also alone: `a)|(?:b` would be a valid pattern within the group, and match a part of a value.
    for expression in (pattern, rf"\A(?:{pattern})\z"):
        try:
            validator = SchemaValidator(
                core_schema.str_schema(pattern=expression, strict=True, regex_engine="rust-regex")
            )
        except SchemaError as error:
            reason = str(error).rpartition(": ")[2].strip()
            raise ValueError(f"must be a regular expression in the syntax of Rust's regex crate: {reason}") from None
    return validator


def _properties(input_schema: Mapping[str, Any]) -> Mapping[str, Any]:
    properties = input_schema.get("properties")
    return properties if isinstance(properties, Mapping) else {}


def _claim(claims: AccessClaims, argument: str, name: str) -> str:
    """Return a claim of the caller. Raises ArgumentsRefused if it has none."""
    value = getattr(claims, name) if name in CALLER_CLAIMS else claims.static.get(name)
    if value is None:
        raise ArgumentsRefused(
            f"This tool needs the claim {name} for the argument {printable(argument)}, and your token does not have "
            "it. Ask the admin of this client to set it.",
            reason=f"the client lacks the claim {name}, which the rule for the argument {printable(argument)} needs",
            remediation=f"{client_command('update', claims.client_id)} --claim {name}=VALUE",
        )
    return str(value)


def _problems(
    rules: Mapping[str, ArgumentRule],
    properties: Mapping[str, Any],
    arguments: Mapping[str, Any],
    injected: Mapping[str, str],
) -> Iterator[str]:
    """Say what is wrong with the arguments. A name that is not in the schema comes from the caller, and is omitted."""
    if not arguments.keys() <= properties.keys():
        more = ", ..." if len(properties) > _MAX_NAMED else ""
        yield f"unknown argument; the arguments are: {', '.join(map(quoted, [*properties][:_MAX_NAMED]))}{more}"
    for name, rule in rules.items():
        if name not in arguments:
            if rule.required:
                yield f"{printable(name)}: is required"
        elif name in injected:
            if arguments[name] != injected[name]:
                yield f"{printable(name)}: must equal the claim {rule.claim} of your token; omit it, and it is added"
        elif not _holds(rule, arguments[name]):
            yield f"{printable(name)}: must be {_describe(rule)}"


def _holds(rule: ArgumentRule, value: Any) -> bool:
    return (
        _is_in_enum(rule, value)
        and (rule.pattern is None or compile_pattern(rule.pattern).isinstance_python(value))
        and (rule.max_length is None or (isinstance(value, str) and len(value) <= rule.max_length))
        and _is_in_range(rule, value)
        and not (rule.required and value is None)
    )


def _is_in_enum(rule: ArgumentRule, value: Any) -> bool:
    # To Python, 1 equals 1.0 and True.
    return rule.enum is None or any(type(value) is type(allowed) and value == allowed for allowed in rule.enum)


def _is_in_range(rule: ArgumentRule, value: Any) -> bool:
    if rule.minimum is None and rule.maximum is None:
        return True
    # bool is a subclass of int. NaN passes no comparison.
    return (
        type(value) in {int, float}
        and (rule.minimum is None or value >= rule.minimum)
        and (rule.maximum is None or value <= rule.maximum)
    )


def _describe(rule: ArgumentRule) -> str:
    """Say what a value must be, to complete "must be"."""
    parts = []
    if rule.enum is not None:
        parts.append(f"one of {', '.join(format_json(value) for value in rule.enum)}")
    if rule.pattern is not None:
        parts.append(f"a string that matches {printable(rule.pattern)}")
    if rule.max_length is not None:
        parts.append(f"a string of at most {rule.max_length} characters")
    if rule.minimum is not None:
        parts.append(f"a number of at least {rule.minimum}")
    if rule.maximum is not None:
        parts.append(f"a number of at most {rule.maximum}")
    return " and ".join(parts) or "other than null"
