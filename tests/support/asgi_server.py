"""Serves an ASGI application of a test on a real socket, in the event loop of the test."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import uvicorn
from starlette.types import ASGIApp


@asynccontextmanager
async def listening(app: ASGIApp, port: int) -> AsyncIterator[None]:
    """Listen at a port of 127.0.0.1 until the end of the block."""
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1))
    async with anyio.create_task_group() as group:
        group.start_soon(server._serve)
        with anyio.fail_after(20):
            while not server.started:
                await anyio.lowlevel.checkpoint()
        try:
            yield
        finally:
            server.should_exit = True
