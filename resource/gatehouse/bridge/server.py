"""The stdio MCP server that a desktop assistant starts. Standard output carries JSON-RPC and nothing else."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

import structlog
from mcp.server import InitializationOptions, NotificationOptions, Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import (
    INTERNAL_ERROR,
    SERVER_INFO_META_KEY,
    CallToolRequest,
    CallToolRequestParams,
    CallToolResult,
    DiscoverResult,
    GetPromptRequest,
    GetPromptRequestParams,
    GetPromptResult,
    Implementation,
    ListPromptsRequest,
    ListPromptsResult,
    ListResourcesRequest,
    ListResourcesResult,
    ListResourceTemplatesRequest,
    ListResourceTemplatesResult,
    ListToolsRequest,
    ListToolsResult,
    PaginatedRequestParams,
    ReadResourceRequest,
    ReadResourceRequestParams,
    ReadResourceResult,
    Request,
    RequestParams,
    TextContent,
    Tool,
)
from pydantic import BaseModel, ValidationError

from gatehouse.bridge.failures import Failure
from gatehouse.bridge.remote import PROTOCOL_VERSION, Remote
from gatehouse.bridge.tokens import TokenSource

Context = ServerRequestContext[Any, Any]
ParamsT = TypeVar("ParamsT", bound=RequestParams)
ResultT = TypeVar("ResultT", bound=BaseModel)

_RESERVED_META: Final = "io.modelcontextprotocol/"

_READING: Final[Sequence[tuple[str, str, type[RequestParams], type[Any], type[BaseModel]]]] = (
    ("resources", "resources/list", PaginatedRequestParams, ListResourcesRequest, ListResourcesResult),
    (
        "resources",
        "resources/templates/list",
        PaginatedRequestParams,
        ListResourceTemplatesRequest,
        ListResourceTemplatesResult,
    ),
    ("resources", "resources/read", ReadResourceRequestParams, ReadResourceRequest, ReadResourceResult),
    ("prompts", "prompts/list", PaginatedRequestParams, ListPromptsRequest, ListPromptsResult),
    ("prompts", "prompts/get", GetPromptRequestParams, GetPromptRequest, GetPromptResult),
)
"""Capability, method, parameters, request and result of what is forwarded when the remote server declares it."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(slots=True)
class Bridge:
    """Forwards requests of an assistant to the remote server."""

    remote: Remote
    tokens: TokenSource
    tools: dict[str, Tool] = field(default_factory=dict)
    """As they were last listed."""
    listed_scope: str | None = None
    """The scope that the tools were last listed for."""

    async def list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """Forward tools/list. Raises MCPError with the words of a refusal."""
        request = ListToolsRequest(params=_forwarded(params or PaginatedRequestParams()))
        result = await self._read(ctx, request, ListToolsResult)
        if params is None or params.cursor is None:
            self.tools.clear()
        self.tools.update({tool.name: tool for tool in result.tools})
        self.listed_scope = self.tokens.scope
        return result

    async def call_tool(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        """Forward tools/call. A refusal is a result, which the assistant reads. Raises MCPError."""
        progress = ctx.session.report_progress if ctx.meta is not None and "progress_token" in ctx.meta else None
        try:
            result = await self.remote.request(
                CallToolRequest(params=_forwarded(params)),
                CallToolResult,
                repeatable=is_repeatable(self.tools.get(params.name), params.arguments or {}),
                progress=progress,
            )
        except Failure as failure:
            log.warning("call not carried out", tool=params.name, reason=str(failure))
            result = CallToolResult(content=[TextContent(text=str(failure))], is_error=True)
        await self._tell_of_other_tools(ctx)
        return result

    def reading(self, request_type: type[Any], result_type: type[BaseModel]) -> Callable[..., Awaitable[Any]]:
        """Return the handler that forwards a method without effects."""

        async def forward(ctx: Context, params: RequestParams) -> BaseModel:
            return await self._read(ctx, request_type(params=_forwarded(params)), result_type)

        return forward

    async def _read(self, ctx: Context, request: Request[Any, Any], result_type: type[ResultT]) -> ResultT:
        try:
            return await self.remote.request(request, result_type, repeatable=True)
        except Failure as failure:
            log.warning("request not carried out", method=ctx.method, reason=str(failure))
            raise MCPError(INTERNAL_ERROR, str(failure)) from None

    async def _tell_of_other_tools(self, ctx: Context) -> None:
        """Have the assistant list the tools again when its rights have changed since: it sees only what it may call."""
        if self.listed_scope in {None, self.tokens.scope} or ctx.protocol_version >= PROTOCOL_VERSION:
            return
        self.listed_scope = self.tokens.scope
        await ctx.session.send_tool_list_changed()


def is_repeatable(tool: Tool | None, arguments: dict[str, Any]) -> bool:
    """Tell whether a call can be sent twice and take effect once: it reads, is idempotent, or carries its key."""
    if tool is None:
        return False
    hints = tool.annotations
    if hints is not None and (hints.read_only_hint or hints.idempotent_hint):
        return True
    return bool(arguments.get("idempotency_key")) and "idempotency_key" in tool.input_schema.get("properties", {})


def _forwarded(params: ParamsT) -> ParamsT:
    """Return parameters without what belongs to one connection alone: protocol, client, progress token."""
    meta = {
        name: value
        for name, value in (params.meta or {}).items()
        if name != "progress_token" and not name.startswith(_RESERVED_META)
    }
    return params.model_copy(update={"meta": meta or None})


def create_server(bridge: Bridge, discovered: DiscoverResult | None, own: Implementation) -> Server[Any]:
    """Return the server to run over stdio: it has the remote server's name and capabilities, where they are known."""
    info = _remote_name(discovered) or own
    server: Server[Any] = Server(
        info.name,
        version=info.version,
        instructions=discovered.instructions if discovered is not None else None,
        on_list_tools=bridge.list_tools,
        on_call_tool=bridge.call_tool,
    )
    # It holds only OpenTelemetry's, and nothing here exports spans.
    server.middleware.clear()
    for capability, method, params_type, request_type, result_type in _READING:
        if discovered is not None and getattr(discovered.capabilities, capability) is not None:
            server.add_request_handler(method, params_type, bridge.reading(request_type, result_type))
    return server


def _remote_name(discovered: DiscoverResult | None) -> Implementation | None:
    stamp = (discovered.meta or {}).get(SERVER_INFO_META_KEY) if discovered is not None else None
    try:
        return Implementation.model_validate(stamp)
    except ValidationError:
        return None


def initialization(server: Server[Any]) -> InitializationOptions:
    """Return what an assistant of 2025-11-25 is told at its handshake."""
    return server.create_initialization_options(NotificationOptions(tools_changed=True))
