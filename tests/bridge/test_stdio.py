"""The lines that desktop clients write: each is executed or answered, and the bridge reads on."""

import io
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, BinaryIO

import anyio
import pytest
from mcp.server import Server
from mcp.server.context import ServerRequestContext
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, TextContent

from gatehouse.bridge.redaction import SentSecrets
from gatehouse.bridge.server import initialization
from gatehouse.bridge.stdio import MAX_LINE, parse_line, read_line, standard_streams, stdio_transport

pytestmark = pytest.mark.anyio

TOKEN = "opaque/token+0123456789=="
SECRET = 'a "quoted" secret\\with\nescapes'
JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2ln"
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientInfo": {"name": "desktop", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}
ECHO = {"method": "tools/call", "params": {"name": "echo", "arguments": {}, "_meta": MODERN}}


async def echo(_: ServerRequestContext[Any, Any], params: CallToolRequestParams) -> CallToolResult:
    arguments = params.arguments or {}
    if params.name == "refuse":
        raise MCPError(-31000, arguments["text"], {"seen": [arguments["text"]]})
    text = TextContent(text=arguments.get("text", "ok"))
    return CallToolResult(content=[text], is_error=params.name == "fail", structured_content={"echo": arguments})


def message(request_id: Any, **members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request_id, **ECHO, **members}).encode()


class Desktop:
    """Writes lines to a transport and reads the answers."""

    def __init__(self, source: BinaryIO, answers: BinaryIO) -> None:
        self._source = source
        self._answers = answers

    async def send(self, *lines: bytes) -> None:
        def write() -> None:
            for line in lines:
                self._source.write(line)
            self._source.flush()

        await anyio.to_thread.run_sync(write)

    async def receive(self) -> Any:
        with anyio.fail_after(20):
            return json.loads(await anyio.to_thread.run_sync(self._answers.readline, abandon_on_cancel=True))

    async def ask(self, *lines: bytes) -> Any:
        await self.send(*lines)
        return await self.receive()


@asynccontextmanager
async def desktop() -> AsyncIterator[Desktop]:
    """Yield a desktop client of a server behind the transport, and assert at the end that nothing else was sent."""
    server: Server[Any] = Server("echo", version="1", on_call_tool=echo)
    secrets = SentSecrets()
    secrets.add(TOKEN, SECRET, "short")
    (read_1, write_1), (read_2, write_2) = os.pipe(), os.pipe()
    with os.fdopen(read_2, "rb") as answers, os.fdopen(write_1, "wb") as lines, os.fdopen(read_1, "rb") as source:
        async with anyio.create_task_group() as group:

            async def serve() -> None:
                with os.fdopen(write_2, "wb") as sink:
                    async with stdio_transport(source, sink, secrets) as (incoming, outgoing):
                        await server.run(incoming, outgoing, initialization(server))

            group.start_soon(serve)
            try:
                yield Desktop(lines, answers)
            finally:
                # Ends the thread that reads, which cannot be cancelled.
                lines.close()
        assert answers.read() == b""


UNREADABLE: list[tuple[str, bytes, Any, int]] = [
    ("text", b"Listening on port 3000", None, -32700),
    ("truncated", message(7)[:-3], 7, -32700),
    ("truncated without an id", b'{"jsonrpc":"2.0"', None, -32700),
    ("half a surrogate pair", message(7, method="\ud83d"), 7, -32700),
    ("half a surrogate pair as the id", message("\ud83d"), None, -32700),
    ("half a UTF-8 sequence", message("a").replace(b"echo", b"\xf0\x9f"), "a", -32700),
    ("Latin-1", message(7).replace(b"echo", b"caf\xe9"), 7, -32700),
    ("UTF-16", message(7).decode().encode("utf-16-le"), None, -32700),
    ("NUL", b"\0", None, -32700),
    ("a raw control character", message(7).replace(b"echo", b"a\x1bb"), 7, -32700),
    ("NaN", message(7, params={"name": "echo", "arguments": {"n": float("nan")}}), 7, -32700),
    ("Infinity", message(7, params={"name": "echo", "arguments": {"n": float("-inf")}}), 7, -32700),
    ("a number beyond floats", message(7).replace(b'"echo"', b"1e999"), 7, -32700),
    ("a number of 5000 digits", message(7).replace(b'"echo"', b"1" * 5000), 7, -32700),
    ("two messages", message(7) + message(8), 7, -32700),
    ("a repeated member", message(7).replace(b'"name": "echo"', b'"name": "a", "name": "b"'), 7, -32700),
    ("a repeated id", message(7).replace(b'"id": 7', b'"id": 7, "id": 8'), None, -32700),
    ("deep nesting", message(7).replace(b'"echo"', b"[" * 100_000 + b"]" * 100_000), 7, -32700),
    ("nesting that cannot be forwarded", message(7, params={"a": json.loads("[" * 60 + "]" * 60)}), 7, -32700),
    ("deep nesting without an id", b"[" * 100_000, None, -32700),
    ("a batch", b"[" + message(7) + b"]", None, -32600),
    ("an empty batch", b"[]", None, -32600),
    ("a string", b'"ping"', None, -32600),
    ("null", b"null", None, -32600),
    ("no members", b"{}", None, -32600),
    ("no jsonrpc", b'{"id":7,"method":"ping"}', 7, -32600),
    ("jsonrpc 1.0", message(7, jsonrpc="1.0"), 7, -32600),
    ("jsonrpc as a number", message("x", jsonrpc=2.0), "x", -32600),
    ("no method", b'{"jsonrpc":"2.0","id":7}', 7, -32600),
    ("a method that is no text", message(7, method=["ping"]), 7, -32600),
    ("a request and a response", message(7, result={}), 7, -32600),
    ("a null id", message(None), None, -32600),
    ("a boolean id", message(True), None, -32600),
    ("a fractional id", message(1.5), None, -32600),
    ("an id of 1.0", message(1.0), None, -32600),
    ("a list as the id", message([7]), None, -32600),
    ("an object as the id", message({"id": 7}), None, -32600),
    ("params in a list", message(7, params=["echo"]), 7, -32602),
    ("params that are text", message("p", params="echo"), "p", -32602),
    ("too long, id first", message(7, params={"text": "x" * MAX_LINE}), 7, -32600),
    ("too long, id last", b'{"method":"ping","params":{"id":1,"t":"%s"},"id":"b"}' % (b"x" * MAX_LINE), "b", -32600),
    ("too long, without an id", b'{"method":"ping","params":{"t":"%s","id":7}}' % (b"x" * MAX_LINE), None, -32600),
    ("too long, with two ids", message(7)[:-1] + b', "t": "%s", "id": 8}' % (b"x" * MAX_LINE), None, -32600),
]


@pytest.mark.threat("T-132")
async def test_a_line_that_cannot_be_read_is_answered() -> None:
    """JSON-RPC 2.0 section 5.1. The request that follows each line proves that the bridge reads on."""
    async with desktop() as client:
        for name, line, request_id, code in UNREADABLE:
            answer = await client.ask(line + b"\n")
            assert (answer["id"], answer["error"]["code"]) == (request_id, code), name
            assert answer["jsonrpc"] == "2.0"
            assert (await client.ask(message("next") + b"\n"))["result"]["content"][0]["text"] == "ok", name


@pytest.mark.parametrize("request_id", [0, -1, 2**63, "", "x" * 1000, "ü"])
async def test_any_valid_id_is_returned(request_id: int | str) -> None:
    async with desktop() as client:
        answer = await client.ask(message(request_id) + b"\n")
        assert answer["id"] == request_id
        assert "result" in answer


@pytest.mark.parametrize(
    ("before", "after"),
    [(b"", b"\r\n"), (b"\xef\xbb\xbf", b"\n"), (b"\xef\xbb\xbf", b"\r\n"), (b"\n\r\n \t\n", b"\n"), (b" \t", b" \r\n")],
)
async def test_byte_order_marks_and_white_space_are_ignored(before: bytes, after: bytes) -> None:
    async with desktop() as client:
        for request_id in (1, 2):
            assert (await client.ask(before + message(request_id) + after))["id"] == request_id


async def test_the_last_line_needs_no_line_feed() -> None:
    assert read_line(io.BytesIO(b"{}")) == b"{}"
    async with desktop() as client:
        await client.send(b"no JSON")
        client._source.close()
        assert (await client.receive())["error"]["code"] == -32700


@pytest.mark.parametrize(
    "line",
    [
        b'{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"?"}}',
        b'{"id":1,"result":{}}',
        b'{"jsonrpc":"1.0","id":[],"error":7}',
        b'{"jsonrpc":"2.0","method":"notifications/none"}',
    ],
)
async def test_responses_and_notifications_are_not_answered(line: bytes) -> None:
    """Two programs that answer each other's errors would never stop."""
    async with desktop() as client:
        assert (await client.ask(line + b"\n" + message(1) + b"\n"))["id"] == 1


def test_a_line_of_the_maximum_length_is_read() -> None:
    padding = b" " * (MAX_LINE - len(message(1)))
    for end in (b"\n", b"\r\n", b""):
        read = read_line(io.BytesIO(message(1)[:-1] + padding + b"}" + end))
        found = parse_line(read)
        assert found is not None
        assert found.method == "tools/call"


def test_only_both_ends_of_a_long_line_are_kept() -> None:
    source = io.BytesIO(b"x" * 5 * MAX_LINE + b"\nnext\n")
    assert MAX_LINE < len(read_line(source)) < MAX_LINE + 256 * 1024
    assert read_line(source) == b"next\n"
    assert len(read_line(io.BytesIO(b"x" * 5 * MAX_LINE))) > MAX_LINE


@pytest.mark.threat("T-120")
@pytest.mark.parametrize("tool", ["echo", "fail", "refuse"])
async def test_the_bridges_own_secrets_are_masked_in_every_answer(tool: str) -> None:
    async with desktop() as client:
        arguments = {"text": f"a {TOKEN} b {SECRET} c", TOKEN: [{"nested": SECRET}]}
        params = {"name": tool, "arguments": arguments, "_meta": MODERN}
        answer = json.dumps(await client.ask(message(1, params=params) + b"\n"))
    assert "a [masked] b [masked] c" in answer
    assert TOKEN not in answer
    assert "quoted" not in answer


@pytest.mark.threat("T-120")
@pytest.mark.parametrize(("tool", "masked"), [("echo", False), ("fail", True), ("refuse", True)])
async def test_other_tokens_are_masked_in_errors_only(tool: str, masked: bool) -> None:
    """The result of a tool may contain a token for the user."""
    async with desktop() as client:
        for text in (JWT, "gths_0123456789", "Authorization: Bearer abcdefghijklmnopqrstuvwxyz"):
            params = {"name": tool, "arguments": {"text": text}, "_meta": MODERN}
            answer = json.dumps(await client.ask(message(1, params=params) + b"\n"))
            assert (text not in answer) is masked


@pytest.mark.threat("T-124")
async def test_other_output_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    os.write(1, b"before ")
    with standard_streams() as (_, sink):
        os.write(1, b"printed")
        sink.write(b"sent ")
        sink.flush()
    os.write(1, b"after")
    assert capfd.readouterr() == ("before sent after", "printed")
