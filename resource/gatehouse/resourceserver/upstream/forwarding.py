"""Forwards the calls of an upstream's tools: the arguments that the rules allow, the progress, the result."""

from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any, Final

from mcp.server.context import ServerRequestContext
from mcp_types import CallToolResult
from mcp_types import Tool as ToolDescription
from pydantic import RootModel, ValidationError

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.catalogue import Progress, Tool, ToolFailed
from gatehouse.resourceserver.catalogue.argument_rules import apply_rules
from gatehouse.resourceserver.catalogue.output_schema import strict_serializer
from gatehouse.resourceserver.catalogue.policy_file import ToolPolicy
from gatehouse.resourceserver.upstream.upstream import (
    Notify,
    OutcomeUnknown,
    ToolCall,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.claims import AccessClaims

TRACE_CONTEXT: Final = ("traceparent", "tracestate", "baggage")
"""The members of a caller's `_meta` that are passed on (W3C Trace Context; MCP SEP-414)."""

_RESERVED: Final = "io.modelcontextprotocol/"
"""The prefix of what a server says of itself in `_meta`, which the gateway says of the gateway."""

_CODES: Final = {json_rpc.INVALID_PARAMS: json_rpc.INVALID_PARAMS}
"""The JSON-RPC errors of an upstream that mean the same to a caller of the gateway. Others are an internal error."""


_MAX_CONTENT: Final = 1000
"""Blocks of content in a result. Each is validated several times, in all protocol versions that it passes."""

_SERIALIZER: Final = strict_serializer(CallToolResult)


class _Arguments(RootModel[dict[str, Any]]):
    """Arguments as they were sent: the rules of the policy and the upstream validate them."""


Call = Callable[[ToolCall], Awaitable[dict[str, Any]]]
"""Calls a tool of the upstream, as `Upstream.call_tool` does."""


Describe = Callable[[AccessClaims], Mapping[str, Any]]
"""Returns the members of `_meta` that tell a program who calls."""


def forwarded_tool(policy: ToolPolicy, listed: Mapping[str, Any], call: Call, describe: Describe) -> Tool:
    """Return a tool whose calls are forwarded.

    Args:
        policy: what the policy says of it.
        listed: the tool as the upstream lists it, and as it was confirmed.
        call: sends a call to the upstream.
        describe: tells it who calls.

    Raises:
        ValidationError: it is not a tool of MCP.
    """
    # A client may request a task only where a tool claims it, and the gateway carries none.
    described = ToolDescription.model_validate(listed, by_name=False).model_copy(update={"execution": None})
    hints = described.annotations
    read_only = hints is not None and hints.read_only_hint is True
    return Tool(
        name=policy.name,
        description=described.description or "",
        scopes=policy.scopes,
        read_only=read_only,
        destructive=hints is None or hints.destructive_hint is not False,
        idempotent=read_only or (hints is not None and hints.idempotent_hint is True),
        streaming=True,
        function=partial(_forward, policy, listed, call, describe),
        in_thread=False,
        injected=MappingProxyType({"claims": AccessClaims, "progress": Progress, "request": ServerRequestContext}),
        arguments=_Arguments,
        result=CallToolResult,
        serializer=_SERIALIZER,
        input_schema=MappingProxyType(described.input_schema),
        output_schema=MappingProxyType(described.output_schema or {}),
        source=f"tools.{policy.name} of the policy file",
        limit=policy.limit,
        described=described,
    )


async def _forward(
    policy: ToolPolicy,
    listed: Mapping[str, Any],
    call: Call,
    describe: Describe,
    *,
    claims: AccessClaims,
    progress: Progress,
    request: ServerRequestContext[Any, Any],
    root: dict[str, Any],
) -> CallToolResult:
    """Call the tool as the caller, and return its result.

    Raises:
        ToolFailed: the arguments violate a rule, or the upstream gave no result.
    """
    arguments = apply_rules(policy.arguments, listed["inputSchema"], root, claims)
    meta = request.meta or {}
    passed = {name: value for name, value in meta.items() if name in TRACE_CONTEXT and isinstance(value, str)}
    notify: Notify | None = progress.report if "progress_token" in meta else None
    try:
        return _result(await call(ToolCall(claims, listed, arguments, {**passed, **describe(claims)}, notify)))
    except UpstreamError as error:
        raise _failed(error, listed) from error


def _result(answer: Mapping[str, Any]) -> CallToolResult:
    """Return a result without what the upstream says of itself. Raises OutcomeUnknown if it is not a result."""
    content = answer.get("content")
    if isinstance(content, list) and len(content) > _MAX_CONTENT:
        raise OutcomeUnknown(f"the upstream's answer has more than {_MAX_CONTENT} blocks of content")
    try:
        result = CallToolResult.model_validate(answer, by_name=False)
    except ValidationError as error:
        raise OutcomeUnknown("the upstream's answer is not a result of a tool") from error
    if result.meta:
        result.meta = {name: value for name, value in result.meta.items() if not name.startswith(_RESERVED)} or None
    return result


def _failed(error: UpstreamError, listed: Mapping[str, Any]) -> ToolFailed:
    """Return what the caller and the operator learn. Nothing that the upstream wrote is in it."""
    reason = str(error)
    if isinstance(error, UpstreamRefused):
        code = _CODES.get(error.code, json_rpc.INTERNAL_ERROR)
        text = "The server of this tool rejected the parameters." if code != json_rpc.INTERNAL_ERROR else _FAILED
        return ToolFailed(text, reason=reason, code=code)
    if isinstance(error, UpstreamBusy):
        return ToolFailed("The server of this tool is busy. Nothing was executed: try again later.", reason=reason)
    if isinstance(error, UpstreamUnavailable):
        return ToolFailed(_UNREACHABLE, reason=reason, remediation="resourceserver policy check")
    return ToolFailed(_REPEATABLE if _is_repeatable(listed) else _UNKNOWN, reason=reason)


_FAILED: Final = "The server of this tool failed."
_UNREACHABLE: Final = "The server of this tool cannot be reached. Nothing was executed: try again later."
_UNKNOWN: Final = (
    "The outcome is unknown: the server of this tool gave no usable answer, and may have executed the call. Read the "
    "current state before you repeat the call."
)
_REPEATABLE: Final = (
    "The outcome is unknown: the server of this tool gave no usable answer. It says of this tool that a call may be "
    "repeated."
)


def _is_repeatable(listed: Mapping[str, Any]) -> bool:
    hints = listed.get("annotations")
    return isinstance(hints, Mapping) and (hints.get("readOnlyHint") is True or hints.get("idempotentHint") is True)
