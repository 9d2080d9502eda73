"""What the bridge reads from other servers is bounded, and none of it can harm the desktop client or a terminal."""

import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import httpx2
import pytest
from mcp.shared.exceptions import MCPError
from mcp_types import TextContent
from starlette.types import ASGIApp, Receive, Scope, Send
from support import notes_server
from support.bridge import error_text
from support.fake_servers import RESOURCE, SECRET, TOKEN_ENDPOINT, FakeServers, call, error_of
from support.notes_server import Disturbance, NotesServer, bridged

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.remote import RemoteServer
from gatehouse.bridge.tokens import Token

pytestmark = pytest.mark.anyio

EVENTS = "text/event-stream"


@pytest.fixture
async def notes(anyio_backend: str) -> AsyncIterator[NotesServer]:
    async with notes_server.running() as server:
        yield server


def stream(content_type: str, *parts: bytes, repeat: int = 1, headers: dict[str, str] | None = None) -> Disturbance:
    """Answer with the parts, `repeat` times, without a length."""

    async def send_parts(_: ASGIApp, __: Scope, ___: Receive, send: Send) -> None:
        fields = {"content-type": content_type, **(headers or {})}
        encoded = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": 200, "headers": encoded})
        for _number in range(repeat):
            for part in parts:
                await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    return send_parts


MEBIBYTE = b"x" * 1024 * 1024


@pytest.mark.threat("T-141")
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (stream("application/json", MEBIBYTE, repeat=40), "longer than 16 MiB"),
        (stream(EVENTS, b"data: ", *[MEBIBYTE] * 40), "longer than 16 MiB"),
        (stream(EVENTS, b": " + MEBIBYTE + b"\n", repeat=40), "longer than 16 MiB"),
        (stream(EVENTS, b"data: {}\n\n" * 100_000, repeat=40), "not MCP"),
        (stream(EVENTS), "connection closed"),
        (stream(EVENTS, b"id: 1\nretry: 999999999\ndata:\n\n"), "connection closed"),
        (stream(EVENTS, b"id: 1\nretry: 0\ndata:\n\n"), "connection closed"),
        (stream("application/json", b"\x1f\x8b", headers={"content-encoding": "gzip"}), "compressed"),
        (stream(EVENTS, b"", headers={"content-encoding": "br"}), "compressed"),
        (stream("application/json", b"{}", headers={"x": "y" * 200_000}), "RemoteProtocolError"),
        (stream("application/json", b"{}", headers={f"x-{n}": "y" for n in range(40_000)}), "RemoteProtocolError"),
    ],
    ids=[
        "JSON",
        "one event",
        "comments",
        "events that are not MCP",
        "an empty stream",
        "a long pause to reconnect",
        "no pause to reconnect",
        "gzip",
        "brotli",
        "a long header",
        "many headers",
    ],
)
async def test_an_unusable_response_is_reported(notes: NotesServer, answer: Disturbance, reason: str) -> None:
    async with bridged(notes, "legacy") as client:
        notes.disturb.append(answer)
        with anyio.fail_after(30):
            text = error_text(await client.call_tool("erase"))
        assert text.startswith(f"No valid response from {notes.url} ({reason}")
        assert (await client.call_tool("read")).structured_content == {"result": 1}


async def test_a_result_of_several_mebibytes_is_forwarded(notes: NotesServer) -> None:
    text = "x" * 5 * 1024 * 1024
    content = {"content": [{"type": "text", "text": text}], "structuredContent": {"result": 1}}
    result = json.dumps({**content, "resultType": "complete"}).encode()
    reply = b'{"jsonrpc":"2.0","id":1,"result":%s}' % result
    async with bridged(notes, "legacy") as client:
        for answer in (stream("application/json", reply), stream(EVENTS, b"data: " + reply + b"\n\n")):
            notes.disturb.append(answer)
            assert (await client.call_tool("erase")).content == [TextContent(text=text)]


@pytest.mark.threat("T-141")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["https://evil.example/mcp", "/mcp/", f"{RESOURCE}?token", ""])
async def test_the_remote_server_cannot_redirect_a_call(status: int, location: str) -> None:
    servers = FakeServers()
    servers.respond(RESOURCE, httpx2.Response(status, headers={"Location": location}))
    assert "redirects to another URL" in str(await error_of(servers))
    assert {seen.url for seen in servers.seen if seen.authorization and "Bearer" in seen.authorization} == {RESOURCE}


async def test_a_redirect_is_refused_over_the_wire(notes: NotesServer) -> None:
    async def redirect(_: ASGIApp, __: Scope, ___: Receive, send: Send) -> None:
        headers = [(b"location", b"/mcp?again")]
        await send({"type": "http.response.start", "status": 307, "headers": headers})
        await send({"type": "http.response.body", "body": b""})

    async with bridged(notes, "legacy") as client:
        notes.disturb.append(redirect)
        assert "redirects to another URL (status 307)" in error_text(await client.call_tool("read"))
    assert notes.calls["read"] == 0


@pytest.mark.threat("T-141")
async def test_a_compressed_rejection_is_not_unpacked() -> None:
    servers = FakeServers()
    headers = {"Content-Encoding": "gzip"}
    servers.respond(RESOURCE, httpx2.Response(401, headers=headers, stream=httpx2.ByteStream(b"\x1f\x8b")))
    assert "(compressed)" in str(await error_of(servers))


@pytest.mark.threat("T-141")
@pytest.mark.parametrize("expires_in", [10**400, 1e308, 10**9, 86401])
async def test_a_lifetime_counts_as_one_day_at_most(expires_in: float) -> None:
    servers = FakeServers(lifetime=expires_in)
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.clock.advance(86400 - 31)
        await http.post(RESOURCE)
        assert servers.issued == 1
        servers.clock.advance(1)
        await http.post(RESOURCE)
        assert servers.issued == 2


@pytest.mark.threat("T-141")
@pytest.mark.parametrize("expires_in", [0, -1, -(10**400), True, "300", [], {}, -0.5])
async def test_an_invalid_lifetime_is_ignored(expires_in: Any) -> None:
    servers = FakeServers(lifetime=expires_in)
    async with servers.client() as http:
        for _ in range(3):
            assert (await http.post(RESOURCE)).status_code == 200
            servers.clock.advance(10**6)
    assert servers.issued == 1


async def test_a_fractional_lifetime_is_used() -> None:
    servers = FakeServers(lifetime=10.5)
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.clock.advance(11)
        await http.post(RESOURCE)
    assert servers.issued == 2


async def current_token(response: dict[str, Any]) -> Token:
    """Return the token of a response with these members."""
    servers = FakeServers()
    members = {"access_token": "t" * 8, "token_type": "Bearer", "expires_in": 300, **response}
    servers.respond(TOKEN_ENDPOINT, httpx2.Response(200, json=members))
    return await servers.tokens().current()


@pytest.mark.threat("T-141")
@pytest.mark.parametrize(
    "token", ["", "t" * 8193, "a\r\nX-Injected: 1", "a b", "a\x1b[31m", "tök", "=a", 7, None, ["t"], "a\n"]
)
async def test_a_token_that_fits_no_header_is_refused(token: Any) -> None:
    assert (await current_token({"access_token": "t" * 8192})).value == "t" * 8192
    servers = FakeServers()
    response = httpx2.Response(200, json={"access_token": token, "token_type": "Bearer", "expires_in": 300})
    servers.respond(TOKEN_ENDPOINT, response)
    assert "returned no bearer token" in str(await error_of(servers))
    assert servers.requests_to(RESOURCE) == []


@pytest.mark.parametrize("scope", [None, ["env:read"], {"a": 1}, 7])
async def test_a_scope_that_is_no_text_is_ignored(scope: Any) -> None:
    assert (await current_token({"scope": scope})).scope == ""


@pytest.mark.threat("T-141")
@pytest.mark.parametrize(
    "url",
    [
        "https://[as.example.com/token",
        "https://as.example.com:99999999/token",
        "https:///token",
        "https://as.example.com/\x1b[31mtoken",
        "https://as.example.com/token\r\nX: 1",
        "https://user:pass@as.example.com/token",
        "https://as.example.com/token#x",
        f"https://as.example.com/{'t' * 2048}",
        "https://\u0430s.example.com/token",
        "//as.example.com/token",
    ],
)
async def test_a_malformed_url_in_metadata_is_refused(url: str) -> None:
    assert (await call(FakeServers())).status_code == 200
    servers = FakeServers()
    servers.metadata["token_endpoint"] = url
    assert "No credential was sent" in str(await error_of(servers))
    servers = FakeServers()
    servers.prm["authorization_servers"] = [url]
    text = str(await error_of(servers, issuer=None))
    assert "No credential was sent" in text
    assert text.isprintable()
    assert servers.credentials_went_to() == set()


@pytest.mark.threat("T-120")
async def test_an_error_code_that_repeats_the_secret_is_masked() -> None:
    servers = FakeServers()
    secret = "correct horse battery staple"
    code = f"\x1b[2J{secret}"
    servers.respond(TOKEN_ENDPOINT, httpx2.Response(400, json={"error": code, "request_id": "req_1"}))
    tokens = servers.tokens(credentials=Credentials("a", "file", "client_secret_post", secret=secret))
    with pytest.raises(BridgeError, match="refused to issue a token") as caught:
        await tokens.current()
    assert r"(\x1b[2J[masked])" in str(caught.value)


async def test_an_unexpected_error_is_not_passed_on() -> None:
    """The SDK sends the text of an unknown exception to the desktop client."""

    def fail(request: httpx2.Request) -> httpx2.Response:
        raise RuntimeError(request.headers["Secret"])

    async with httpx2.AsyncClient(transport=httpx2.MockTransport(fail), headers={"Secret": SECRET}) as http:
        with pytest.raises(BridgeError, match=r"\(RuntimeError\). The request may have been executed") as caught:
            await RemoteServer(RESOURCE, http, notes_server.OWN, pauses=()).discover()
        assert SECRET not in str(caught.value)


async def test_remote_errors_reach_the_client_unchanged_otherwise(notes: NotesServer) -> None:
    async with bridged(notes, "legacy") as client:
        notes.disturb.append(
            stream("application/json", b'{"jsonrpc":"2.0","id":1,"error":{"code":-31000,"message":"a\\u001b[31m"}}')
        )
        with pytest.raises(MCPError) as caught:
            await client.call_tool("erase")
        assert (caught.value.error.code, caught.value.error.message) == (-31000, "a\x1b[31m")
