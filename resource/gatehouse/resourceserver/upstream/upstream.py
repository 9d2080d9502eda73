"""What the gateway needs of an upstream, whatever its transport: its list of tools, and calls of them."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Final, NamedTuple, Protocol

from gatehouse.shared.protocol.claims import AccessClaims

MAX_TIMEOUTS: Final = 10
"""A call ends after so many times the timeout of the policy, whatever progress it makes."""

Notify = Callable[[float, float | None, str | None], Awaitable[None]]
"""Forwards the progress of a call to its caller: progress, total, message."""


class Caller(NamedTuple):
    """Who calls. A session of a stateful upstream belongs to one caller."""

    client_id: str
    subject: str


class ToolCall(NamedTuple):
    """A call that the policy allowed, as it is sent to the upstream. It never contains the caller's token."""

    claims: AccessClaims
    """Of the caller. They choose the session of a stateful upstream, and its identity if the upstream is told it."""
    tool: Mapping[str, Any]
    """The tool as the upstream listed it, and as it was confirmed."""
    arguments: Mapping[str, Any]
    meta: Mapping[str, Any]
    """Members of the caller's `_meta` that are passed on: the trace context, and no identity."""
    notify: Notify | None
    """None for a caller that requested no progress."""

    @property
    def caller(self) -> Caller:
        """The caller, by its claims."""
        return Caller(self.claims.client_id, self.claims.sub)


class Upstream(Protocol):
    """An MCP server behind the gateway."""

    def running(self) -> AbstractAsyncContextManager[None]:
        """Return the context in which the upstream can be used. It does not wait for the upstream to answer."""
        ...

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools, of every page, as the upstream describes them. Raises UpstreamError."""
        ...

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        """Call a tool, and return the `result` of the answer: a JSON object, not yet validated as a CallToolResult.

        If the task is cancelled, the upstream is told to stop.

        Raises:
            UpstreamError: there is no result.
        """
        ...


class UpstreamError(Exception):
    """An upstream gave no result. The text is for the operator, and contains nothing that the upstream sent."""


class UpstreamUnavailable(UpstreamError):
    """The request did not reach the upstream, so nothing was executed."""


class UpstreamBusy(UpstreamUnavailable):
    """Every session of the upstream is in use."""


class OutcomeUnknown(UpstreamError):
    """The request was sent, and no usable answer came: it may have been executed. It is never sent again."""


class UpstreamRefused(UpstreamError):
    """The upstream answered with a JSON-RPC error."""

    def __init__(self, code: int) -> None:
        super().__init__(f"the upstream answered with the JSON-RPC error {code}")
        self.code = code
