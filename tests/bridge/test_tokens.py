"""When the bridge requests and renews tokens, and how it explains a rejection."""

import asyncio
from typing import Any

import anyio
import httpx2
import pytest
from support.fake_servers import (
    CLIENT,
    ISSUER,
    METADATA,
    RESOURCE,
    SECRET,
    TOKEN_ENDPOINT,
    FakeServers,
    call,
    error_of,
    oauth_error,
)

from gatehouse.bridge.credentials import InvalidCredentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.http_client import create_http
from gatehouse.bridge.tokens import TokenSource

pytestmark = pytest.mark.anyio


async def test_a_token_request_names_the_resource_and_no_scope() -> None:
    servers = FakeServers()
    assert (await call(servers)).status_code == 200
    (request,) = servers.requests_to(TOKEN_ENDPOINT)
    assert request.form == {"grant_type": "client_credentials", "resource": RESOURCE}
    assert request.authorization is not None
    assert request.authorization.startswith("Basic ")
    assert [seen.authorization for seen in servers.requests_to(RESOURCE)] == ["Bearer token-1"]


async def test_a_token_request_can_name_scopes() -> None:
    servers = FakeServers()
    tokens = servers.tokens(scope="env:read org:read")
    await tokens.current()
    assert servers.requests_to(TOKEN_ENDPOINT)[0].form["scope"] == "env:read org:read"
    servers.respond(TOKEN_ENDPOINT, oauth_error(400, "invalid_scope"))
    with pytest.raises(BridgeError, match="is not granted env:read org:read at https://mcp"):
        await tokens.replace(await tokens.current())


async def test_a_token_is_reused_and_renewed_before_it_expires() -> None:
    servers = FakeServers(lifetime=300)
    async with servers.client() as http:
        for _ in range(3):
            await http.post(RESOURCE)
        servers.clock.advance(269)
        await http.post(RESOURCE)
        assert servers.issued == 1
        servers.clock.advance(1)
        await http.post(RESOURCE)
    assert servers.issued == 2
    sent = [seen.authorization for seen in servers.requests_to(RESOURCE)]
    assert sent == [*["Bearer token-1"] * 4, "Bearer token-2"]
    assert len(servers.requests_to(METADATA)) == 1


async def test_concurrent_requests_share_one_new_token() -> None:
    servers = FakeServers()
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.issued += 1  # The resource now rejects the token in use.
        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(http.post, RESOURCE)
    assert len(servers.requests_to(TOKEN_ENDPOINT)) == 2


async def test_a_rejected_token_is_replaced_once() -> None:
    servers = FakeServers()
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.respond(RESOURCE, httpx2.Response(401))
        assert (await http.post(RESOURCE)).status_code == 200
        servers.respond(RESOURCE, httpx2.Response(401), httpx2.Response(401))
        with pytest.raises(BridgeError, match=r"rejected the token that https://as\.example\.com has just issued"):
            await http.post(RESOURCE)
    assert servers.issued == 3


@pytest.mark.threat("T-129")
async def test_an_unexpired_token_is_used_while_the_issuer_is_down() -> None:
    servers = FakeServers(lifetime=300)
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.clock.advance(280)
        unavailable = httpx2.ConnectError("refused")
        servers.respond(TOKEN_ENDPOINT, unavailable, unavailable)
        assert (await http.post(RESOURCE)).status_code == 200
        servers.clock.advance(20)
        with pytest.raises(BridgeError, match="does not respond"):
            await http.post(RESOURCE)
        assert (await http.post(RESOURCE)).status_code == 200
    assert servers.issued == 2


async def test_a_token_without_expires_in_is_used_until_rejected() -> None:
    servers = FakeServers(lifetime=None)
    async with servers.client() as http:
        await http.post(RESOURCE)
        servers.clock.advance(10**6)
        assert (await http.post(RESOURCE)).status_code == 200
    assert servers.issued == 1


async def test_a_request_is_repeated_after_a_new_grant() -> None:
    servers = FakeServers(granted="env:read", needed="env:write")
    async with servers.client() as http:
        with pytest.raises(BridgeError, match="lacks the scope env:write"):
            await http.post(RESOURCE)
        servers.granted = "env:read env:write"
        assert (await http.post(RESOURCE)).status_code == 200


async def test_a_missing_scope_error_names_scope_command_and_request() -> None:
    servers = FakeServers(needed="env:write")
    text = str(await error_of(servers))
    command = f"authserver client grant add agent_1 --resource {RESOURCE} --scope env:write"
    assert text == (
        f"This client lacks the scope env:write. Ask the admin to run `{command}`, then repeat the call."
        " (Request req_1.)"
    )
    assert len(servers.requests_to(RESOURCE)) == 1


@pytest.mark.threat("T-123")
async def test_a_resource_cannot_inject_into_the_admins_command() -> None:
    """CWE-78: the server chooses the scope in its challenge."""
    quoted = str(await error_of(FakeServers(needed="$(id)")))
    assert "--scope '$(id)'" in quoted
    assert "authserver" not in str(await error_of(FakeServers(needed="a  b")))
    forged = FakeServers(needed="env:write")
    challenge = 'Bearer error="insufficient_scope", scope="env:write"'
    forged.respond(RESOURCE, httpx2.Response(403, headers={"WWW-Authenticate": challenge, "X-Request-Id": "x; rm -rf"}))
    assert "rm -rf" not in str(await error_of(forged))


@pytest.mark.parametrize(
    ("response", "text", "temporary"),
    [
        (oauth_error(401, "invalid_client"), "did not accept the client agent_1 with the credential from", False),
        (oauth_error(401, "invalid_client"), "run `authserver audit --request req_9`, which names the reason.", False),
        (
            httpx2.Response(401, json={"error": "invalid_client"}),
            "run `authserver audit --client agent_1`, which",
            False,
        ),
        (oauth_error(400, "invalid_scope"), "has no grants at https://mcp.example.com/mcp", False),
        (oauth_error(400, "invalid_target"), "The URL must be the one that the server is registered with", False),
        (oauth_error(400, "unsupported_grant_type"), "refused to issue a token (unsupported_grant_type)", False),
        (httpx2.Response(404, text="<html>"), "answered status 404 to a token request", False),
        (httpx2.Response(500, text="<html>"), "answered status 500", True),
        (httpx2.Response(503), "asks to retry later", True),
        (httpx2.Response(429), "asks to retry later", True),
        (httpx2.Response(429, headers={"Retry-After": "60"}), "wait 60 s, then try again", True),
        (httpx2.Response(200, json={"access_token": "x", "token_type": "DPoP"}), "returned no bearer token", False),
        (httpx2.Response(200, json=[]), "returned no bearer token", False),
        (httpx2.Response(200, content=b"{" * 70_000), "returned no bearer token", False),
        (httpx2.ConnectError("refused"), "does not respond (ConnectError)", True),
        (httpx2.ReadTimeout("slow"), "does not respond (ReadTimeout)", True),
    ],
)
async def test_a_refused_token_request_is_explained(
    response: httpx2.Response | Exception, text: str, temporary: bool
) -> None:
    servers = FakeServers()
    servers.respond(TOKEN_ENDPOINT, response)
    error = await error_of(servers)
    assert text in str(error)
    assert error.temporary is temporary
    assert not error.outcome_unknown
    assert servers.requests_to(RESOURCE) == []
    assert (await call(servers)).status_code == 200


@pytest.mark.parametrize(
    ("response", "text", "temporary", "unknown"),
    [
        (httpx2.Response(404, text="<html>"), "There is no MCP server at https://mcp.example.com/mcp", False, False),
        (httpx2.Response(403, text="<html>"), "There is no MCP server at https://mcp.example.com/mcp", False, False),
        (httpx2.Response(503), "asks to retry later (status 503). The request was not executed", True, False),
        (httpx2.Response(429), "asks to retry later (status 429)", True, False),
        (httpx2.Response(429, headers={"Retry-After": "12"}), "wait 12 s, then try again.", True, False),
        (httpx2.Response(429, headers={"Retry-After": "13"}), "wait 13 s, then try again.", False, False),
        (httpx2.Response(429, headers={"Retry-After": "soon"}), "not executed; try again.", True, False),
        (httpx2.Response(502), "The request may have been executed", False, True),
        (httpx2.Response(500, json={}), "The request may have been executed", False, True),
    ],
)
async def test_an_http_error_is_explained(response: httpx2.Response, text: str, temporary: bool, unknown: bool) -> None:
    servers = FakeServers()
    servers.respond(RESOURCE, response)
    error = await error_of(servers)
    assert text in str(error)
    assert (error.temporary, error.outcome_unknown) == (temporary, unknown)


async def test_credentials_are_read_for_each_token_request() -> None:
    servers, reads = FakeServers(), 0

    def credentials() -> Any:
        nonlocal reads
        reads += 1
        if reads == 2:
            raise InvalidCredentials("The credentials file x is open to others. Run: chmod 600 x")
        return CLIENT

    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))
    tokens = TokenSource(http, RESOURCE, ISSUER, credentials, servers.clock)
    first = await tokens.current()
    with pytest.raises(BridgeError, match="Run: chmod 600 x"):
        await tokens.replace(first)
    assert (await tokens.replace(first)).value == "token-2"


@pytest.mark.threat("T-118")
async def test_plain_http_never_uses_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[bytes] = []

    async def reject(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.append(await reader.readline())
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    # One server is both the proxy and the plain HTTP resource. The request line shows which one a client addresses.
    async with await asyncio.start_server(reject, "127.0.0.1", 0) as server:
        address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "https_proxy", "HTTPS_PROXY"):
            monkeypatch.setenv(name, f"http://{address}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with create_http() as http:
            assert (await http.get(f"http://{address}/mcp")).status_code == 403
            with pytest.raises(httpx2.ProxyError):
                await http.get("https://mcp.example.com/mcp")
    assert received == [b"GET /mcp HTTP/1.1\r\n", b"CONNECT mcp.example.com:443 HTTP/1.1\r\n"]


@pytest.mark.threat("T-120")
async def test_the_repr_of_a_token_contains_no_secret() -> None:
    servers = FakeServers()
    token = await servers.tokens().current()
    assert token.value not in repr(token)
    assert SECRET not in repr(CLIENT)


async def test_a_missing_scope_is_named_while_the_issuer_is_down() -> None:
    servers = FakeServers(needed="env:write")
    async with servers.client() as http:
        with pytest.raises(BridgeError, match="lacks the scope env:write"):
            await http.post(RESOURCE)
        servers.respond(TOKEN_ENDPOINT, httpx2.ConnectError("refused"))
        with pytest.raises(BridgeError, match="lacks the scope env:write"):
            await http.post(RESOURCE)
