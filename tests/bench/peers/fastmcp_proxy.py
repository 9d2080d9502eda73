"""FastMCP's proxy: stateless, JSON responses, tokens verified with its JWTVerifier, on uvicorn with its fast parts.

Argument: JSON with port, issuer, resource, and the server behind it as upstream: a URL, or a command with arguments.
With `shared`, all requests share one session with that server. A program on stdio is always shared.
"""

import asyncio
import json
import ssl
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any

import uvicorn
import uvloop
from fastmcp import Client
from fastmcp.client.transports import StdioTransport, StreamableHttpTransport
from fastmcp.server import create_proxy
from fastmcp.server.auth.providers.jwt import JWTVerifier


async def serve(options: Mapping[str, Any]) -> None:
    """Serve until SIGTERM."""
    upstream = options["upstream"]
    # By default, the proxy loads the certificate authorities for each request, which takes 70 ms.
    target: Any = (
        StreamableHttpTransport(upstream, verify=ssl.create_default_context())
        if isinstance(upstream, str)
        else StdioTransport(upstream[0], upstream[1:])
    )
    async with AsyncExitStack() as stack:
        if options.get("shared"):
            target = await stack.enter_async_context(Client(target, mode="2026-07-28"))
        verifier = JWTVerifier(
            jwks_uri=f"{options['issuer']}/.well-known/jwks.json",
            issuer=options["issuer"],
            audience=options["resource"],
            algorithm="ES256",
        )
        proxy = create_proxy(target, name="bench", auth=verifier)
        app = proxy.http_app(path="/mcp", stateless_http=True, json_response=True)
        config = uvicorn.Config(app, port=options["port"], http="httptools", access_log=False, log_level="warning")
        await uvicorn.Server(config).serve()


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(json.loads(sys.argv[1])))
