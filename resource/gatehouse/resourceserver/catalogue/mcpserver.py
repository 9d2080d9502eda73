"""A server that exists already, an MCPServer of the SDK, behind the same gate and lock as tools of our own.

    CATALOGUE = guarded_catalogue(
        server,
        scopes={"list_notes": ["notes:read"], "add_note": ["notes:write"]},
        declared=[Scope("notes:read", "See notes"), Scope("notes:write", "Add notes", implies=("notes:read",))],
    )

The table is closed: a tool that is not in it does not exist for callers, and prompts and resources are not served. The
tools run as they are, and ask the SDK's `get_access_token()` who calls. What they get of the request holds no token.
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
from gatehouse.resourceserver.catalogue.declaration import Scope, Tool, ToolFailed, ToolScopes, read_scopes
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.shared.protocol.claims import AccessClaims

_TELLING = set(get_args(ErrorType)) - {"value_error", "assertion_error", "union_tag_invalid"}
"""Kinds of errors whose texts say what an argument must be. Others may quote what was sent."""


class InvalidArguments(ToolFailed):
    """The guarded server does not take the arguments."""


class _Arguments(RootModel[dict[str, Any]]):
    """Arguments as they were sent: the guarded server validates them."""


def guarded_catalogue(
    server: MCPServer[Any], *, scopes: Mapping[str, ToolScopes], declared: Iterable[Scope]
) -> Catalogue:
    """Return a catalogue of exactly the tools in the table, each forwarded to the server.

    Args:
        server: with its tools; one that is added to it later is not served.
        scopes: by the name of a tool, every scope that a caller needs, or ANY_VALID_TOKEN.
        declared: every scope that there is.

    Raises:
        InvalidCatalogue: the table names a tool that the server does not have, or no scopes for one, or a scope that
            is not declared; or the server has auth or middleware of its own, which this would pass by.
    """
    source = f"server {server.name}"
    _require_bare(server, source)
    listed = {tool.name: tool for tool in _list_tools(server)}
    if missing := sorted(scopes.keys() - listed.keys()):
        raise InvalidCatalogue(
            f"{source}: the table names the tool {missing[0]}, which the server does not have. "
            f"It has: {', '.join(sorted(listed))}."
        )
    forwarding = _Forwarding(server)
    forwarded = [
        _forwarded(forwarding, listed[name], read_scopes(needed, name, source), source)
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
    """Refuse a server whose calls pass through more than its tools: what stands there may be a protection."""
    if server.settings.auth is not None:
        raise InvalidCatalogue(
            f"{source}: its own auth would be passed by. The guard verifies tokens: make the server without auth= and "
            "its verifier or provider, and name its required scopes in the table."
        )
    own: list[Any] = [layer for layer in server.middleware if not type(layer).__module__.startswith("mcp.server.")]
    # The SDK has no public way to ask (docs/decisions/0006-sdk-internals.md).
    extensions = server._extensions  # noqa: SLF001
    own += [each for each in extensions if type(each).intercept_tool_call is not Extension.intercept_tool_call]
    if own:
        name = getattr(own[0], "__name__", type(own[0]).__name__)
        raise InvalidCatalogue(
            f"{source}: its middleware or extension {name} would be passed by. Move what it does into the tools."
        )


def _list_tools(server: MCPServer[Any]) -> list[ToolDescription]:
    # The SDK lists asynchronously, and here a loop may run or not.
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
        injected=MappingProxyType({"claims": AccessClaims, "request": ServerRequestContext}),
        arguments=_Arguments,
        input_schema=MappingProxyType(described.input_schema),
        output_schema=MappingProxyType(described.output_schema or {}),
        source=source,
        described=described,
    )


class _Forwarding:
    """From dispatch to the guarded server, in one process."""

    def __init__(self, server: MCPServer[Any]) -> None:
        self._server = server
        self._lifespan_context: Any = {}

    @asynccontextmanager
    async def lifespan(self) -> AsyncIterator[None]:
        """Enter the server's own lifespan: what it yields is the tools' lifespan context."""
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
            ToolFailed: the server does not take the arguments, the tool says why it cannot, or it wants to ask.
        """
        caller = auth_context_var.set(AuthenticatedUser(_access_token(claims)))
        try:
            result = await self._server.call_tool(tool.name, root, self._context(request))
        except ToolError as error:
            raise _public(error, tool) from error
        finally:
            auth_context_var.reset(caller)
        if not isinstance(result, CallToolResult):
            raise ToolFailed("This tool wants to ask its caller for more, which is not served here.")
        return result

    def _context(self, request: ServerRequestContext[Any, Any]) -> Context[Any, Any]:
        # Without the HTTP request: its headers hold the token, which is not the tools' to see or to pass on.
        bare = replace(request, request=None, lifespan_context=self._lifespan_context)
        return Context(request_context=bare, mcp_server=self._server, subscriptions=InMemorySubscriptionBus())


def _access_token(claims: AccessClaims) -> AccessToken:
    """Return what the SDK's get_access_token() tells of the caller: every claim, and not the token itself."""
    return AccessToken(
        token="",
        client_id=claims.client_id,
        scopes=sorted(claims.scope),
        expires_at=claims.exp,
        resource=claims.aud,
        subject=claims.sub,
        claims=claims.to_json(),
    )


def _public(error: ToolError, tool: ToolDescription) -> Exception:
    """Return what may be told of a failure: a text that the tool meant for its caller, and no value of an argument.

    The SDK says for its own errors what was sent, and puts the text of a nested failure into the outer one.
    """
    if isinstance(error.__cause__, ValidationError) and not isinstance(error, UnexpectedToolError):
        return InvalidArguments(_explain(error.__cause__, tool))
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ValidationError | UnexpectedToolError | UnexpectedResourceError):
            return error
        cause = cause.__cause__
    return ToolFailed(str(error))


def _explain(error: ValidationError, tool: ToolDescription) -> str:
    names = tool.input_schema.get("properties", {})
    problems: dict[str, str] = {}
    for problem in error.errors(include_input=False, include_url=False, include_context=False):
        # A name that is not the schema's was sent.
        name = str(problem["loc"][0]) if problem["loc"] and problem["loc"][0] in names else "arguments"
        problems.setdefault(name, problem["msg"] if problem["type"] in _TELLING else "is not accepted")
    told = "; ".join(f"{name}: {problem}" for name, problem in problems.items())
    return f"The arguments do not fit the tool's input schema: {told}."
