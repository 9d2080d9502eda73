"""The error for an operation that the policy does not allow: the same at the gate and in dispatch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.policy import Forbidden, Refusal, Withheld
from gatehouse.shared.protocol.scopes import format_scope

Kind = Literal["tool", "resource"]


@dataclass(frozen=True, slots=True)
class Denial:
    """A denied operation, as HTTP, JSON-RPC and the audit log report it."""

    status: int
    """The HTTP status."""
    code: int
    """The code of the JSON-RPC error."""
    message: str
    """The public text, which says what to do next."""
    reason: str
    """The reason in the audit log."""
    data: Mapping[str, str]
    """Members of the JSON-RPC error's `data`."""


def deny(decision: Refusal, kind: Kind, name: str) -> Denial:
    """Return the error for a decision. `name` is the name of a tool or the URI of a resource."""
    if isinstance(decision, Withheld):
        return Denial(400, json_rpc.INVALID_PARAMS, json_rpc.WITHHELD_TOOL_MESSAGE, decision.reason, {})
    if not isinstance(decision, Forbidden):
        text = json_rpc.UNKNOWN_TOOL_MESSAGE if kind == "tool" else json_rpc.UNKNOWN_RESOURCE_MESSAGE
        # MCP SEP-2164: the error of an unknown resource carries its URI.
        return Denial(400, json_rpc.INVALID_PARAMS, text, text, {} if kind == "tool" else {"uri": name})
    needed = format_scope(decision.scope)
    return Denial(
        403,
        json_rpc.INSUFFICIENT_SCOPE,
        f"This {kind} needs the scope {needed}. Ask the admin of this client to grant it.",
        f"needs {needed}",
        {"error": "insufficient_scope", "scope": needed},
    )
