"""The error of an operation that the policy does not allow: the same at the gate and in dispatch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.policy import Forbidden, Unknown
from gatehouse.shared.protocol.scopes import format_scope

Kind = Literal["tool", "resource"]


@dataclass(frozen=True, slots=True)
class Denial:
    """An error for HTTP, JSON-RPC and the audit log."""

    status: int
    """Of the HTTP response."""
    code: int
    """Of the JSON-RPC error."""
    message: str
    """For the caller: what to do next."""
    reason: str
    """For the audit log."""
    data: Mapping[str, str]
    """Members of the JSON-RPC error's `data`."""


def deny(decision: Forbidden | Unknown, kind: Kind, name: str) -> Denial:
    """Return the error of a decision about a tool, by its name, or a resource, by its URI."""
    if isinstance(decision, Unknown):
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
