"""Which issuer the bridge sends its credentials to."""

import ssl
from typing import Any

import httpx2
import pytest
from support.fake_servers import (
    CLIENT,
    ISSUER,
    METADATA,
    PRM,
    RESOURCE,
    TOKEN_ENDPOINT,
    FakeServers,
    call,
    error_of,
)

from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.tokens import TokenSource

pytestmark = pytest.mark.anyio


@pytest.mark.threat("T-116")
async def test_a_pinned_issuer_is_not_read_from_the_resource() -> None:
    servers = FakeServers(prm={"resource": RESOURCE, "authorization_servers": ["https://evil.example"]})
    assert (await call(servers)).status_code == 200
    assert servers.requests_to(PRM) == []
    assert servers.credentials_went_to() == {TOKEN_ENDPOINT}


@pytest.mark.threat("T-116")
@pytest.mark.parametrize(
    "named",
    [
        "https://evil.example",
        "https://mcp.example.com.evil.example",
        "https://mcp.example.com:8443",
        "http://mcp.example.com",
        "https://mcp.example.com@evil.example",
        "http://127.0.0.1:9000",
        "",
    ],
)
async def test_a_resource_cannot_send_credentials_to_another_host(named: str) -> None:
    """MCP 2026-07-28, "Authorization Server Binding"; mix-up attacks (RFC 9207 section 1, RFC 9728 section 7.6)."""
    own = "https://mcp.example.com"
    servers = FakeServers(metadata={"issuer": own, "token_endpoint": f"{own}/token"})
    servers.prm["authorization_servers"] = [own]
    assert (await call(servers, issuer=None)).status_code == 200
    hostile = FakeServers(metadata={"issuer": named, "token_endpoint": f"{named}/token"})
    hostile.prm["authorization_servers"] = [named]
    error = await error_of(hostile, issuer=None)
    assert "No credential was sent" in str(error)
    assert hostile.credentials_went_to() == set()
    assert [seen.url for seen in hostile.seen] == [PRM]


async def test_a_loopback_resource_may_name_a_loopback_issuer() -> None:
    """The user of the machine controls both."""
    servers = FakeServers(
        prm={"resource": "http://127.0.0.1:8000/mcp", "authorization_servers": ["http://localhost:9000"]},
        metadata={"issuer": "http://localhost:9000", "token_endpoint": "http://localhost:9000/token"},
    )
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))
    tokens = TokenSource(http, "http://127.0.0.1:8000/mcp", None, lambda: CLIENT)
    assert (await tokens.current()).issuer == "http://localhost:9000"


@pytest.mark.threat("T-117")
@pytest.mark.parametrize(
    "metadata",
    [
        {"issuer": "https://other.example.com", "token_endpoint": TOKEN_ENDPOINT},
        {"issuer": f"{ISSUER}/", "token_endpoint": TOKEN_ENDPOINT},
        {"token_endpoint": TOKEN_ENDPOINT},
        {"issuer": ISSUER, "token_endpoint": "http://as.example.com/token"},
        {"issuer": ISSUER, "token_endpoint": ["https://as.example.com/token"]},
        {"issuer": ISSUER},
    ],
)
async def test_invalid_issuer_metadata_gets_no_credential(metadata: dict[str, Any]) -> None:
    """RFC 8414 sections 3.3 and 6.2."""
    assert (await call(FakeServers())).status_code == 200
    servers = FakeServers(metadata=metadata)
    assert "No credential was sent" in str(await error_of(servers))
    assert servers.credentials_went_to() == set()


@pytest.mark.parametrize(("pinned", "named"), [(f"{ISSUER}/", ISSUER), (ISSUER, f"{ISSUER}/")])
async def test_an_issuer_that_differs_by_a_slash_is_named(pinned: str, named: str) -> None:
    servers = FakeServers(metadata={"issuer": named, "token_endpoint": TOKEN_ENDPOINT})
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))
    told = f"at {pinned} belongs to a different issuer, {named}: they differ by the slash at the end. No credential"
    with pytest.raises(BridgeError, match=told):
        await TokenSource(http, RESOURCE, pinned, lambda: CLIENT).current()
    assert servers.credentials_went_to() == set()


@pytest.mark.threat("T-117")
async def test_a_redirect_is_not_followed_with_credentials() -> None:
    servers = FakeServers()
    servers.respond(TOKEN_ENDPOINT, httpx2.Response(307, headers={"Location": "https://evil.example/token"}))
    await error_of(servers)
    assert servers.credentials_went_to() == {TOKEN_ENDPOINT}


async def test_a_resource_registered_under_another_url_is_rejected() -> None:
    servers = FakeServers(prm={"resource": "https://mcp.example.com/other", "authorization_servers": [ISSUER]})
    assert "registered under another URL" in str(await error_of(servers, issuer=None))
    assert servers.credentials_went_to() == set()


async def test_an_issuers_path_follows_the_well_known_path() -> None:
    """RFC 8414 section 3.1."""
    issuer = f"{ISSUER}/tenant"
    servers = FakeServers(metadata={"issuer": issuer, "token_endpoint": f"{issuer}/token"})
    assert (await call(servers, issuer)).status_code == 200
    assert servers.seen[0].url == f"{METADATA}/tenant"


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"authorization_servers": []}, "names no authorization server. Set it with --issuer URL."),
        ({"authorization_servers": [7]}, "names no authorization server"),
        ({"authorization_servers": ISSUER}, "names no authorization server"),
        ({"resource": None}, "registered under another URL"),
        ({"resource": "note://one"}, "registered under another URL"),
    ],
)
async def test_invalid_resource_metadata_is_reported(changes: dict[str, Any], text: str) -> None:
    servers = FakeServers()
    servers.prm.update(changes)
    assert text in str(await error_of(servers, issuer=None))
    assert servers.credentials_went_to() == set()


async def test_resource_metadata_is_also_found_at_the_root() -> None:
    """RFC 9728 section 3.1, and MCP 2026-07-28, "Protected Resource Metadata Discovery Requirements"."""
    own = "https://mcp.example.com"
    servers = FakeServers(metadata={"issuer": own, "token_endpoint": f"{own}/token"})
    servers.prm["authorization_servers"] = [own]
    servers.respond(PRM, httpx2.Response(404))
    assert (await call(servers, issuer=None)).status_code == 200
    assert servers.seen[1].url == PRM.removesuffix("/mcp")


@pytest.mark.parametrize(
    ("response", "temporary"),
    [
        (httpx2.Response(404), False),
        (httpx2.Response(500), True),
        (httpx2.Response(200, text="<html>"), False),
        (httpx2.Response(200, headers={"Content-Encoding": "gzip"}, content=b""), False),
    ],
)
async def test_missing_issuer_metadata_is_reported(response: httpx2.Response, temporary: bool) -> None:
    servers = FakeServers()
    servers.respond(METADATA, response)
    error = await error_of(servers)
    assert f"The authorization server has no metadata at {METADATA}" in str(error)
    assert error.temporary is temporary


async def test_an_untrusted_certificate_is_reported() -> None:
    servers = FakeServers()
    failed = httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED]")
    failed.__cause__ = ssl.SSLCertVerificationError(1, "x")
    failed.__cause__.verify_message, failed.__cause__.verify_code = "self-signed certificate", 18
    servers.respond(METADATA, failed)
    error = await error_of(servers)
    assert "as.example.com is not trusted (self-signed certificate): set BRIDGE_CA_FILE or SSL_CERT_FILE" in str(error)
    assert not error.temporary


async def test_tls_that_fails_after_the_handshake_is_reported() -> None:
    """The library passes that error on as it is."""
    servers = FakeServers()
    servers.respond(METADATA, ssl.SSLError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"))
    assert str(await error_of(servers)).startswith("The TLS connection to the authorization server failed")
