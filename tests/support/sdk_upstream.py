"""Upstreams on real sockets: servers of the official SDK, of one protocol version each."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Annotated, Literal

import anyio
from local_stack import free_port
from mcp.server.mcpserver import Context, MCPServer
from mcp_types import SamplingMessage, TextContent
from pydantic import Field
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from support.asgi_server import listening
from support.upstreams import MODERN


@dataclass
class SdkUpstream:
    """A server of the official SDK, and what it has seen."""

    url: str
    kind: Literal["modern", "stateless", "stateful"]
    started: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)
    http: Counter[str] = field(default_factory=Counter)
    """Requests by HTTP method."""

    def build(self) -> ASGIApp:
        """Return the application."""
        server = MCPServer("fixture", version="1")
        counts: Counter[str | None] = Counter()

        @server.tool()
        async def echo(text: str) -> dict[str, str]:
            return {"text": text}

        @server.tool()
        async def route(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> str:
            return region

        @server.tool()
        async def count(ctx: Context) -> int:
            """Count the calls of the session."""
            session = ctx.headers.get("mcp-session-id") if ctx.headers is not None else None
            counts[session] += 1
            return counts[session]

        @server.tool()
        async def steps(ctx: Context) -> str:
            for step in (1, 2, 3):
                await ctx.report_progress(step, 3, f"step {step}")
            return "done"

        @server.tool()
        async def fail() -> str:
            raise ValueError("broken")

        @server.tool()
        async def sample(ctx: Context) -> str:
            message = SamplingMessage(role="user", content=TextContent(type="text", text="?"))
            result = await ctx.session.create_message([message], max_tokens=1)
            return str(result)

        @server.tool()
        async def wait() -> str:
            self.started.set()
            try:
                await anyio.sleep_forever()
            finally:
                self.cancelled.set()
            return "never"

        return self._only_one_era(server.streamable_http_app(stateless_http=self.kind == "stateless"))

    def _only_one_era(self, app: ASGIApp) -> ASGIApp:
        async def serve(scope: Scope, receive: Receive, send: Send) -> None:
            headers = dict(scope.get("headers", ()))
            if scope["type"] == "http":
                self.http[scope["method"]] += 1
                if self.kind != "modern" and headers.get(b"mcp-protocol-version") == MODERN.encode():
                    # As version 1 of the SDK answers.
                    error = {"code": -32600, "message": "Bad Request: Unsupported protocol version"}
                    await JSONResponse({"jsonrpc": "2.0", "id": "server-error", "error": error}, 400)(
                        scope, receive, send
                    )
                    return
            await app(scope, receive, send)

        return serve


@asynccontextmanager
async def sdk_upstream(kind: Literal["modern", "stateless", "stateful"], port: int = 0) -> AsyncIterator[SdkUpstream]:
    """Serve until the end of the block. The kind `stateful` has sessions of the version 2025-11-25."""
    port = port or free_port()
    upstream = SdkUpstream(f"http://127.0.0.1:{port}/mcp", kind)
    async with listening(upstream.build(), port):
        yield upstream
