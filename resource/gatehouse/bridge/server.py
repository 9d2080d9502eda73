"""The stdio MCP server that a desktop client starts. Standard output carries only JSON-RPC messages."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final, TypeVar

import anyio
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

from gatehouse.bridge.bearer_auth import BearerAuth
from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.http_client import create_http
from gatehouse.bridge.remote import PROTOCOL_VERSION, RemoteServer
from gatehouse.bridge.stdio import standard_streams, stdio_transport
from gatehouse.bridge.tokens import TokenSource

Context = ServerRequestContext[Any, Any]
ParamsT = TypeVar("ParamsT", bound=RequestParams)
ResultT = TypeVar("ResultT", bound=BaseModel)

_DISCOVERY_TIMEOUT: Final = 10
"""Seconds that discovery of the remote server may take at start."""

_RESERVED_META: Final = "io.modelcontextprotocol/"

_FORWARDED_METHODS: Final[Sequence[tuple[str, str, type[RequestParams], type[Any], type[BaseModel]]]] = (
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
"""Capability, method, parameters, request and result of each method that is forwarded if the remote server has it."""

log = structlog.stdlib.get_logger(__name__)


async def serve(
    url: str, issuer: str | None, credentials: Callable[[], Credentials], ca_file: Path | None = None
) -> None:
    """Serve over standard input and output until the input ends.

    Args:
        url: the canonical resource identifier of the remote server.
        issuer: the only issuer that may receive the credentials; None for the one that the remote server names.
        credentials: called for each token request. Raises InvalidCredentials.
        ca_file: certificates of the trusted authorities; None for those of the environment.
    """
    own = Implementation(name="gatehouse-bridge", version=version("gatehouse"))
    async with create_http(ca_file=ca_file) as to_issuer:
        tokens = TokenSource(to_issuer, url, issuer, credentials)
        async with create_http(BearerAuth(tokens), ca_file) as to_remote:
            remote = RemoteServer(url, to_remote, own)
            server = create_server(Bridge(remote, tokens), await _discover(remote, tokens), own)
            with standard_streams() as (source, sink):
                async with stdio_transport(source, sink, tokens.secrets) as (incoming, outgoing):
                    await server.run(incoming, outgoing, initialization(server))


async def _discover(remote: RemoteServer, tokens: TokenSource) -> DiscoverResult | None:
    """Return the remote server's name and capabilities; None if it is unavailable, and then each request says why."""
    with anyio.move_on_after(_DISCOVERY_TIMEOUT):
        try:
            return await remote.discover()
        except (BridgeError, MCPError) as error:
            log.warning(
                "discovery of the remote server failed; the bridge offers tools only",
                reason=tokens.secrets.mask(str(error)),
            )
    return None


@dataclass(slots=True)
class Bridge:
    """Forwards the desktop client's requests to the remote server."""

    remote: RemoteServer
    tokens: TokenSource
    tools: dict[str, Tool] = field(default_factory=dict)
    """The tools of the last listing, by name."""
    listed_scope: str | None = None
    """The scope of the token that the tools were last listed with."""

    async def list_tools(self, ctx: Context, params: PaginatedRequestParams | None) -> ListToolsResult:
        """Forward tools/list. Raises MCPError with the reason for a rejection."""
        request = ListToolsRequest(params=_forwardable(params or PaginatedRequestParams()))
        result = await self._read(ctx, request, ListToolsResult)
        if params is None or params.cursor is None:
            self.tools.clear()
        self.tools.update({tool.name: tool for tool in result.tools})
        self.listed_scope = self.tokens.scope
        return result

    async def call_tool(self, ctx: Context, params: CallToolRequestParams) -> CallToolResult:
        """Forward tools/call. A rejection becomes an error result, which the model can read. Raises MCPError."""
        progress = ctx.session.report_progress if ctx.meta is not None and "progress_token" in ctx.meta else None
        try:
            result = await self.remote.request(
                CallToolRequest(params=_forwardable(params)),
                CallToolResult,
                repeatable=is_repeatable(self.tools.get(params.name), params.arguments or {}),
                progress=progress,
            )
        except BridgeError as error:
            reason = self.tokens.secrets.mask(str(error))
            log.warning("tool call failed", tool=params.name, reason=reason)
            result = CallToolResult(content=[TextContent(text=reason)], is_error=True)
        await self._announce_changed_tools(ctx)
        return result

    def read_handler(self, request_type: type[Any], result_type: type[BaseModel]) -> Callable[..., Awaitable[Any]]:
        """Return a handler that forwards a read-only method."""

        async def forward(ctx: Context, params: RequestParams) -> BaseModel:
            return await self._read(ctx, request_type(params=_forwardable(params)), result_type)

        return forward

    async def _read(self, ctx: Context, request: Request[Any, Any], result_type: type[ResultT]) -> ResultT:
        try:
            return await self.remote.request(request, result_type, repeatable=True)
        except BridgeError as error:
            reason = self.tokens.secrets.mask(str(error))
            log.warning("request failed", method=ctx.method, reason=reason)
            raise MCPError(INTERNAL_ERROR, reason) from None

    async def _announce_changed_tools(self, ctx: Context) -> None:
        """Send tools/list_changed after the scope changed: the listing contains only the tools that it allows."""
        if self.listed_scope in {None, self.tokens.scope} or ctx.protocol_version >= PROTOCOL_VERSION:
            return
        self.listed_scope = self.tokens.scope
        await ctx.session.send_tool_list_changed()


def is_repeatable(tool: Tool | None, arguments: dict[str, Any]) -> bool:
    """Return whether a call sent twice takes effect once: read-only, idempotent, or with an idempotency key."""
    if tool is None:
        return False
    hints = tool.annotations
    if hints is not None and (hints.read_only_hint or hints.idempotent_hint):
        return True
    return bool(arguments.get("idempotency_key")) and "idempotency_key" in tool.input_schema.get("properties", {})


def _forwardable(params: ParamsT) -> ParamsT:
    """Return the parameters without the metadata of one connection: protocol, client, progress token."""
    meta = {
        name: value
        for name, value in (params.meta or {}).items()
        if name != "progress_token" and not name.startswith(_RESERVED_META)
    }
    return params.model_copy(update={"meta": meta or None})


def create_server(bridge: Bridge, discovered: DiscoverResult | None, own: Implementation) -> Server[Any]:
    """Return the stdio server, with the remote server's name and capabilities where they are known."""
    info = _remote_name(discovered) or own
    server: Server[Any] = Server(
        info.name,
        version=info.version,
        instructions=discovered.instructions if discovered is not None else None,
        on_list_tools=bridge.list_tools,
        on_call_tool=bridge.call_tool,
    )
    # The SDK's only default middleware is OpenTelemetry's, and the bridge exports no spans.
    server.middleware.clear()
    for capability, method, params_type, request_type, result_type in _FORWARDED_METHODS:
        if discovered is not None and getattr(discovered.capabilities, capability) is not None:
            server.add_request_handler(method, params_type, bridge.read_handler(request_type, result_type))
    return server


def _remote_name(discovered: DiscoverResult | None) -> Implementation | None:
    stamp = (discovered.meta or {}).get(SERVER_INFO_META_KEY) if discovered is not None else None
    try:
        return Implementation.model_validate(stamp)
    except ValidationError:
        return None


def initialization(server: Server[Any]) -> InitializationOptions:
    """Return the server's part of the handshake of MCP 2025-11-25 clients."""
    return server.create_initialization_options(NotificationOptions(tools_changed=True))
