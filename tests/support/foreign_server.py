"""An MCP server that is not ours, made with the SDK, on a real socket: it has prompts, and breaks what it answers."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import anyio
import uvicorn
from local_stack import free_port
from mcp import Client
from mcp.client._transport import TransportStreams
from mcp.server import Server
from mcp.server.mcpserver import Context, MCPServer
from mcp.shared.memory import create_client_server_memory_streams
from mcp_types import Implementation, ToolAnnotations
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from gatehouse.bridge.remote import Remote
from gatehouse.bridge.server import Bridge, create_server, initialization
from gatehouse.bridge.serving import create_http
from gatehouse.bridge.tokens import BearerAuth, TokenSource
from support.token_world import CLIENT

OWN = Implementation(name="gatehouse-bridge", version="1")

Disturbance = Callable[[ASGIApp, Scope, Receive, Send], Any]
"""Answers a request in the application's place, or breaks its answer."""


def break_after_running(content_type: str = "application/json") -> Disturbance:
    """Carry the request out and lose the answer, as a server does that is killed in between."""

    async def break_off(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        async def lose(_: Any) -> None:
            pass

        await app(scope, receive, lose)
        headers = [(b"content-type", content_type.encode()), (b"content-length", b"9")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        # The end of the application ends the connection, eight bytes early.
        await send({"type": "http.response.body", "body": b"{", "more_body": True})

    return break_off


async def garble(app: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
    """Carry the request out, and answer what nobody can read."""

    async def lose(_: Any) -> None:
        pass

    await app(scope, receive, lose)
    await Response(b'{"jsonrpc"', media_type="application/json")(scope, receive, send)


def refuse(status: int) -> Disturbance:
    """Answer a status without running anything."""

    async def answer(_: ASGIApp, scope: Scope, receive: Receive, send: Send) -> None:
        await JSONResponse({}, status)(scope, receive, send)

    return answer


@dataclass
class ForeignServer:
    """The server, what was called there, and what befalls the next calls."""

    url: str
    calls: Counter[str] = field(default_factory=Counter)
    disturb: deque[Disturbance] = field(default_factory=deque)
    """What befalls the next calls of a tool."""
    scope: str = "notes:read"
    started: anyio.Event = field(default_factory=anyio.Event)
    cancelled: anyio.Event = field(default_factory=anyio.Event)

    def build(self) -> ASGIApp:
        server = MCPServer("notes", version="9", instructions="Read before you write.")
        reading = ToolAnnotations(read_only_hint=True)

        @server.tool(annotations=reading)
        async def read() -> int:
            self.calls["read"] += 1
            return self.calls["read"]

        @server.tool()
        async def write(idempotency_key: str = "", note: str = "") -> int:
            self.calls["write"] += 1
            return self.calls["write"]

        @server.tool()
        async def erase(note: str = "") -> int:
            self.calls["erase"] += 1
            return self.calls["erase"]

        @server.tool()
        async def count(ctx: Context) -> str:
            for step in (1, 2, 3):
                await ctx.report_progress(step, 3, f"step {step}")
            return "counted"

        @server.tool()
        async def wait() -> str:
            self.started.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()
            return "never"

        @server.resource("note://one")
        def one() -> str:
            return "the first note"

        @server.prompt()
        def summarize() -> str:
            return "Summarize the notes."

        return server.streamable_http_app(stateless_http=True)

    def around(self, app: ASGIApp) -> ASGIApp:
        """Add the issuer's endpoints, and the disturbances."""

        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(scope.get("headers", ()))
            if scope["type"] == "http" and scope["path"] != "/mcp":
                await JSONResponse(self._document(scope["path"]))(scope, receive, send)
            elif self.disturb and headers.get(b"mcp-method") == b"tools/call":
                await self.disturb.popleft()(app, scope, receive, send)
            else:
                await app(scope, receive, send)

        return serve

    def _document(self, path: str) -> dict[str, Any]:
        origin = self.url.removesuffix("/mcp")
        if path == "/token":
            return {"access_token": "t", "token_type": "Bearer", "expires_in": 300, "scope": self.scope}
        if path.startswith("/.well-known/oauth-protected-resource"):
            return {"resource": self.url, "authorization_servers": [origin]}
        return {"issuer": origin, "token_endpoint": f"{origin}/token"}


@asynccontextmanager
async def running() -> AsyncIterator[ForeignServer]:
    """Serve until the end of the context."""
    port = free_port()
    foreign = ForeignServer(f"http://127.0.0.1:{port}/mcp")
    config = uvicorn.Config(foreign.around(foreign.build()), port=port, log_config=None, timeout_graceful_shutdown=1)
    server = uvicorn.Server(config)
    async with anyio.create_task_group() as group:
        group.start_soon(server._serve)
        with anyio.fail_after(20):
            while not server.started:
                await anyio.lowlevel.checkpoint()
        try:
            yield foreign
        finally:
            server.should_exit = True


@asynccontextmanager
async def bridged(foreign: ForeignServer, mode: str) -> AsyncIterator[Client]:
    """An assistant's client of a bridge to a server, in this process."""
    async with create_http() as to_issuer:
        tokens = TokenSource(to_issuer, foreign.url, None, lambda: CLIENT)
        async with create_http(BearerAuth(tokens)) as to_remote:
            remote = Remote(foreign.url, to_remote, OWN, pauses=(0.0, 0.0))
            server = create_server(Bridge(remote, tokens), await remote.discover(), OWN)
            async with assistant(server, mode) as client:
                yield client


@asynccontextmanager
async def assistant(server: Server[Any], mode: str) -> AsyncIterator[Client]:
    """A client of a server by the messages of stdio, without its pipes."""

    @asynccontextmanager
    async def transport() -> AsyncIterator[TransportStreams]:
        async with create_client_server_memory_streams() as (ours, theirs), anyio.create_task_group() as group:
            group.start_soon(server.run, *theirs, initialization(server))
            yield ours
            group.cancel_scope.cancel()

    async with Client(transport(), mode=mode, cache=None) as client:
        yield client
