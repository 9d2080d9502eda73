"""Serves the tools of an existing server, an MCPServer of the SDK, behind the same gate and dispatch as other tools.

    CATALOGUE = guarded_catalogue(
        server,
        scopes={"list_notes": ["notes:read"], "add_note": ["notes:write"]},
        declared=[Scope("notes:read", "See notes"), Scope("notes:write", "Add notes", implies=("notes:read",))],
    )

The table is closed: a tool that is not in it does not exist for callers, and prompts and resources are not served. The
tools run unchanged, and identify the caller with the SDK's `get_access_token()`. They do not get the token itself.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any, get_args

import anyio
from mcp.server.auth.middleware.auth_context import auth_context_var
from mcp.server.auth.middleware.bearer_auth import AuthenticatedUser
from mcp.server.auth.provider import AccessToken
from mcp.server.context import ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedResourceError, UnexpectedToolError
from mcp.server.subscriptions import InMemorySubscriptionBus
from mcp_types import CallToolResult
from mcp_types import Tool as ToolDescription
from pydantic import RootModel, ValidationError
from pydantic_core.core_schema import ErrorType

from gatehouse.resourceserver.catalogue.catalogue import Catalogue
from gatehouse.resourceserver.catalogue.declaration import Scope, ToolScopes, read_limit, read_scopes
from gatehouse.resourceserver.catalogue.output_schema import strict_serializer
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.catalogue.tool import Tool, ToolFailed
from gatehouse.shared.protocol.claims import AccessClaims

_SAFE_ERRORS = set(get_args(ErrorType)) - {"value_error", "assertion_error", "union_tag_invalid"}
"""Types of validation errors whose texts say what an argument must be. Others may quote what was sent."""


class InvalidArguments(ToolFailed):
    """The guarded server rejects the arguments."""


class _Arguments(RootModel[dict[str, Any]]):
    """Arguments as they were sent: the guarded server validates them."""


def guarded_catalogue(
    server: MCPServer[Any],
    *,
    scopes: Mapping[str, ToolScopes],
    declared: Iterable[Scope],
    limits: Mapping[str, str] = MappingProxyType({}),
) -> Catalogue:
    """Return a catalogue of exactly the tools in the table, each forwarded to the server.

    Args:
        server: the server. A tool that is added to it later is not served.
        scopes: the table: by the name of a tool, all scopes that a caller needs, or ANY_VALID_TOKEN.
        declared: all scopes.
        limits: by the name of a tool, how often one client may call it, such as `30/minute`, or `off`.

    Raises:
        InvalidCatalogue: the table names a tool that the server does not have, a tool without scopes, or a scope that
            is not declared; a limit is not a rate, or for a tool that is not in the table; or the server has auth or
            middleware of its own, which would be bypassed.
    """
    source = f"server {server.name}"
    _require_bare(server, source)
    listed = {tool.name: tool for tool in _list_tools(server)}
    if missing := sorted(scopes.keys() - listed.keys()):
        raise InvalidCatalogue(
            f"{source}: the table names the tool {missing[0]}, which the server does not have. "
            f"It has: {', '.join(sorted(listed))}."
        )
    if unlisted := sorted(limits.keys() - scopes.keys()):
        raise InvalidCatalogue(f"{source}: {unlisted[0]} has a limit, and is not in the table of scopes.")
    forwarding = _Forwarding(server)
    forwarded = [
        replace(
            _forwarded(forwarding, listed[name], read_scopes(needed, name, source), source),
            limit=read_limit(limits.get(name), name, source),
        )
        for name, needed in scopes.items()
    ]
    return Catalogue(
        server.name,
        declared,
        groups=(),
        instructions=server.instructions,
        lifespan=forwarding.lifespan,
        forwarded=forwarded,
    )


def _require_bare(server: MCPServer[Any], source: str) -> None:
    """Refuse a server with auth, middleware or intercepting extensions: they may protect it, and would be bypassed."""
    if server.settings.auth is not None:
        raise InvalidCatalogue(
            f"{source}: its own auth would be bypassed. The guard verifies tokens: create the server without auth= and "
            "its verifier or provider, and list its required scopes in the table."
        )
    own: list[Any] = [layer for layer in server.middleware if not type(layer).__module__.startswith("mcp.server.")]
    # The SDK has no public attribute for them (docs/decisions/0006-sdk-internals.md).
    extensions = server._extensions  # noqa: SLF001
    own += [each for each in extensions if type(each).intercept_tool_call is not Extension.intercept_tool_call]
    if own:
        name = getattr(own[0], "__name__", type(own[0]).__name__)
        raise InvalidCatalogue(
            f"{source}: its middleware or extension {name} would be bypassed. Move what it does into the tools."
        )


def _list_tools(server: MCPServer[Any]) -> list[ToolDescription]:
    # The SDK lists asynchronously, and an event loop may already run in this thread.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, server.list_tools).result()


def _forwarded(forwarding: "_Forwarding", described: ToolDescription, scopes: frozenset[str], source: str) -> Tool:
    hints = described.annotations
    read_only = hints is not None and hints.read_only_hint is True
    return Tool(
        name=described.name,
        description=described.description or "",
        scopes=scopes,
        read_only=read_only,
        destructive=hints is None or hints.destructive_hint is not False,
        idempotent=read_only or (hints is not None and hints.idempotent_hint is True),
        streaming=False,
        function=partial(forwarding.call, described),
        in_thread=False,
        injected=MappingProxyType({"claims": AccessClaims, "request": ServerRequestContext}),
        arguments=_Arguments,
        result=CallToolResult,
        serializer=strict_serializer(CallToolResult),
        input_schema=MappingProxyType(described.input_schema),
        output_schema=MappingProxyType(described.output_schema or {}),
        source=source,
        described=described,
    )


class _Forwarding:
    """Forwards calls from dispatch to the guarded server, in one process."""

    def __init__(self, server: MCPServer[Any]) -> None:
        self._server = server
        self._lifespan_context: Any = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Enter the server's own lifespan, and keep what it yields as the tools' lifespan context."""
        own = self._server.settings.lifespan
        if own is None:
            yield
            return
        async with own(self._server) as context:
            self._lifespan_context = context
            yield

    async def call(
        self,
        tool: ToolDescription,
        *,
        claims: AccessClaims,
        request: ServerRequestContext[Any, Any],
        root: dict[str, Any],
    ) -> CallToolResult:
        """Call a tool of the server as the caller, and return its result unchanged.

        Raises:
            ToolFailed: the server rejects the arguments, the tool raised a ToolError, or it requests input.
        """
        caller = auth_context_var.set(AuthenticatedUser(_access_token(claims)))
        try:
            result = await self._server.call_tool(tool.name, root, self._context(request))
        except ToolError as error:
            if (public := _public(error, tool)) is not None:
                raise public from error
            raise
        finally:
            auth_context_var.reset(caller)
        if not isinstance(result, CallToolResult):
            raise ToolFailed("This tool requests input from its caller, which is not supported here.")
        return result

    def _context(self, request: ServerRequestContext[Any, Any]) -> Context[Any, Any]:
        # Without the HTTP request, because its headers contain the token, which tools must not see or forward.
        bare = replace(request, request=None, lifespan_context=self._lifespan_context)
        return Context(request_context=bare, mcp_server=self._server, subscriptions=InMemorySubscriptionBus())


def _access_token(claims: AccessClaims) -> AccessToken:
    """Return what the SDK's get_access_token() returns: all claims, without the token itself."""
    return AccessToken(
        token="",
        client_id=claims.client_id,
        scopes=sorted(claims.scope),
        expires_at=claims.exp,
        resource=claims.aud,
        subject=claims.sub,
        claims=claims.to_json(),
    )


def _public(error: ToolError, tool: ToolDescription) -> ToolFailed | None:
    """Return ToolFailed for an error that the tool meant for its caller; None for one that stays private.

    The SDK's own errors quote what was sent, and contain the text of the exceptions that caused them.
    """
    if isinstance(error.__cause__, ValidationError) and not isinstance(error, UnexpectedToolError):
        return InvalidArguments(_explain(error.__cause__, tool))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError | UnexpectedToolError | UnexpectedResourceError):
            return None
        cause = cause.__cause__
    return ToolFailed(str(error))


def _explain(error: ValidationError, tool: ToolDescription) -> str:
    names = tool.input_schema.get("properties", {})
    problems: dict[str, str] = {}
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        # A name that is not in the schema comes from the caller.
        name = str(problem["loc"][0]) if problem["loc"] and problem["loc"][0] in names else "arguments"
        problems.setdefault(name, problem["msg"] if problem["type"] in _SAFE_ERRORS else "is not valid")
    told = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return f"The arguments do not fit the tool's input schema: {told}."
