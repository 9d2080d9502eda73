"""The rules for the arguments of an upstream's tool, which go further than its input schema."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gatehouse.resourceserver.catalogue.tool import ToolFailed
from gatehouse.shared.protocol.claims import AccessClaims


class ArgumentsRefused(ToolFailed):
    """The arguments violate a rule. The text names the argument and the rule, and repeats no value."""


@dataclass(frozen=True, slots=True)
class ArgumentRule:
    """The rule for one argument. Every part that is set must hold."""

    enum: tuple[str | int | float | bool, ...] | None = None
    pattern: str | None = None
    """A regular expression that the whole value must match, in linear time (Rust's syntax)."""
    max_length: int | None = None
    """Characters."""
    minimum: float | None = None
    maximum: float | None = None
    required: bool = False
    claim: str | None = None
    """The claim of the caller that the argument must equal. It is added if the caller does not send it."""


def apply_rules(
    rules: Mapping[str, ArgumentRule],
    input_schema: Mapping[str, Any],
    arguments: Mapping[str, Any],
    claims: AccessClaims,
) -> Mapping[str, Any]:
    """Return the arguments to send: those of the caller, and those that come from its claims.

    With rules, only arguments that the input schema names are accepted.

    Raises:
        ArgumentsRefused: an argument violates a rule, is not in the schema, or the caller lacks a claim.
    """
    raise NotImplementedError
