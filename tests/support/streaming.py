"""A request whose response the test reads piece by piece, and may abandon before its end."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message

from support.resourceserver import RESOURCE, modern_request

ACCEPT = "application/json, text/event-stream"


def tool_request(version: str, tool: str, arguments: Mapping[str, Any], progress_token: Any = None) -> Any:
    """Return the body and headers of a tools/call in a protocol version."""
    body, headers = modern_request("tools/call", name=tool, arguments=arguments)
    if version != "2026-07-28":
        body["params"].pop("_meta")
        headers = {"MCP-Protocol-Version": version}
    if progress_token is not None:
        body["params"].setdefault("_meta", {})["progressToken"] = progress_token
    return body, headers


class Stream:
    """The response to one request. Apart from its own buffers, the server cannot send more than the test reads."""

    def __init__(self, sent: MemoryObjectReceiveStream[Message], left: anyio.Event) -> None:
        self._sent = sent
        self._left = left
        self._rest = b""
        self.status = 0
        self.headers = Headers()

    async def start(self) -> None:
        """Read the status and the headers."""
        message = await self._sent.receive()
        assert message["type"] == "http.response.start"
        self.status, self.headers = message["status"], Headers(raw=list(message["headers"]))

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Read the JSON-RPC messages of an event stream until it ends."""
        async for message in self._sent:
            *events, self._rest = (self._rest + message.get("body", b"")).split(b"\r\n\r\n")
            for event in events:
                data = [line[5:] for line in event.split(b"\r\n") if line.startswith(b"data:")]
                if data:
                    yield json.loads(b"".join(data))

    async def body(self) -> Any:
        """Read a response that is one JSON object."""
        return json.loads(b"".join([message.get("body", b"") async for message in self._sent]))

    def leave(self) -> None:
        """Close the connection. The server is told, and anything that it sends afterwards is discarded."""
        self._left.set()
        self._sent.close()


@asynccontextmanager
async def streamed(app: ASGIApp, body: Any, headers: Mapping[str, str], token: str | None) -> AsyncIterator[Stream]:
    """POST to the MCP endpoint of an application, until the block ends."""
    to_test, sent = anyio.create_memory_object_stream[Message](0)
    left = anyio.Event()
    to_app = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]

    async def receive() -> Message:
        if to_app:
            return to_app.pop()
        await left.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        try:
            await to_test.send(message)
        except anyio.BrokenResourceError:
            assert left.is_set()

    async def run() -> None:
        async with to_test:
            await app(_scope(headers, token), receive, send)

    async with anyio.create_task_group() as tasks, sent:
        tasks.start_soon(run)
        stream = Stream(sent, left)
        await stream.start()
        yield stream
        stream.leave()


def _scope(headers: Mapping[str, str], token: str | None) -> dict[str, Any]:
    url = urlsplit(RESOURCE)
    sent = {"Host": url.netloc, "Content-Type": "application/json", "Accept": ACCEPT, **headers}
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in sent.items()],
        "server": (url.netloc, 443),
        "client": ("127.0.0.1", 50000),
    }
