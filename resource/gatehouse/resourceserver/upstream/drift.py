"""Compares the policy with what the upstream lists: which tools can be served, and why others cannot.

A tool is served only as an operator confirmed it. An upstream that changes a description, a schema or an annotation
afterwards could deceive an agent that trusts the old one ("rug pull"; docs/threat-model.md).
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, Final

from mcp_types import Tool as ToolDescription
from pydantic import ValidationError

from gatehouse.resourceserver.catalogue.argument_rules import unknown_arguments
from gatehouse.resourceserver.catalogue.catalogue import TOOL_NAME
from gatehouse.resourceserver.catalogue.policy_file import PolicyFile, ToolPolicy
from gatehouse.resourceserver.catalogue.tool_digest import tool_digest


class ToolState(StrEnum):
    """How a tool of the policy or of the upstream stands."""

    SERVED = "served"
    UNCONFIRMED = "unconfirmed"
    """The policy has no digest of it."""
    CHANGED = "changed"
    """It is not what was confirmed."""
    GONE = "gone"
    """The upstream does not have it."""
    UNUSABLE = "unusable"
    """It cannot be served: it has no canonical form, requires a task, or a rule is for an argument it does not have."""
    NEW = "new"
    """The upstream has it, and the policy does not mention it. It is denied."""


_REASONS: Final[Mapping[ToolState, str]] = {
    ToolState.UNCONFIRMED: "the tool is not confirmed; run: resourceserver policy confirm {name}",
    ToolState.CHANGED: "the tool changed after it was confirmed; run: resourceserver policy confirm {name}",
    ToolState.GONE: "the upstream does not have the tool; run: resourceserver policy check",
    ToolState.UNUSABLE: "the tool cannot be served as the upstream describes it; run: resourceserver policy check",
}


def withheld_reason(name: str, state: ToolState) -> str | None:
    """Return why a tool of the policy is withheld, for the operator; None if it is not."""
    reason = _REASONS.get(state)
    # The upstream chooses the name, and --all would confirm every tool.
    return None if reason is None else reason.format(name=f"-- {name}" if name.startswith("-") else name)


def compare(policy: PolicyFile, listed: Sequence[Mapping[str, Any]]) -> dict[str, ToolState]:
    """Return the state of every tool of the policy and of the upstream, by its name, without the denied ones.

    `listed` are the tools as the upstream lists them; each has a name.
    """
    by_name = {tool["name"]: tool for tool in listed}
    states = {name: _state(tool, by_name.get(name)) for name, tool in policy.tools.items()}
    new = by_name.keys() - policy.tools.keys() - policy.denied
    return states | dict.fromkeys(sorted(new), ToolState.NEW)


def _state(tool: ToolPolicy, listed: Mapping[str, Any] | None) -> ToolState:
    if listed is None:
        return ToolState.GONE
    try:
        digest = tool_digest(listed)
    except ValueError:
        return ToolState.UNUSABLE
    if tool.digest is None:
        return ToolState.UNCONFIRMED
    if tool.digest != digest:
        return ToolState.CHANGED
    return ToolState.UNUSABLE if _obstacle(listed, tool) is not None else ToolState.SERVED


def unusable_reason(listed: Mapping[str, Any], tool: ToolPolicy | None = None) -> str | None:
    """Return why a tool of the upstream cannot be served, even if it is confirmed; None if it can.

    The text contains nothing that the upstream wrote. `tool` is what the policy says of it, if it mentions it.
    """
    if TOOL_NAME.fullmatch(listed["name"]) is None:
        return "its name has characters other than A-Z, a-z, 0-9, _, - and ., or more than 128"
    try:
        tool_digest(listed)
    except ValueError as error:
        return str(error)
    return _obstacle(listed, tool)


def _obstacle(listed: Mapping[str, Any], tool: ToolPolicy | None) -> str | None:
    """Return why a tool with a valid name and a digest cannot be served."""
    try:
        ToolDescription.model_validate(listed, by_name=False)
    except ValidationError:
        return "its description is not what MCP specifies for a tool"
    if tool is not None and (unknown := unknown_arguments(tool.arguments, listed.get("inputSchema", {}))):
        return f"the policy has a rule for the argument {unknown[0]}, which the tool does not have"
    execution = listed.get("execution")
    if isinstance(execution, Mapping) and execution.get("taskSupport") == "required":
        return "the tool can only be called as a task, which the gateway does not carry"
    return None
