"""Host and Origin: a web page cannot reach the server under its own host name.

Sources: CVE-2025-66416 (DNS rebinding, MCP Python SDK); MCP 2026-07-28, Streamable HTTP, "Security".
"""

from pathlib import Path

import httpx2
import pytest
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

pytestmark = pytest.mark.anyio

METADATA = "https://mcp.example.com/.well-known/oauth-protected-resource"
OURS = "https://mcp.example.com"


async def get(server: ResourceServer, url: str = METADATA, *headers: tuple[str, str]) -> httpx2.Response:
    return await server.http.get(url, headers=list(headers))


@pytest.mark.parametrize("host", ["mcp.example.com", "MCP.Example.COM", "mcp.example.com:443"])
async def test_the_host_of_the_resource_is_served(resourceserver: ResourceServer, host: str) -> None:
    """RFC 9110 4.2.3: neither case nor the default port of the scheme makes a different host."""
    assert (await get(resourceserver, METADATA, ("Host", host))).status_code == 200


@pytest.mark.divergence("D-62")
@pytest.mark.threat("T-029")
@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "mcp.example.com.evil.example", "evil.example:443", "mcp.example.com:8443", "127.0.0.1"),
        *("localhost", "", "mcp.example.com,evil.example", "mcp.example.com evil", "user@mcp.example.com"),
    ],
)
async def test_another_host_is_misdirected(resourceserver: ResourceServer, host: str) -> None:
    assert (await get(resourceserver, METADATA, ("Host", "mcp.example.com"))).status_code == 200
    response = await get(resourceserver, METADATA, ("Host", host))
    assert response.status_code == 421
    assert response.json()["request_id"] == response.headers["x-request-id"]
    assert "evil" not in response.text


async def test_two_host_headers_are_refused_even_if_both_are_valid(resourceserver: ResourceServer) -> None:
    """RFC 9112 3.2."""
    assert (await get(resourceserver, METADATA, ("Host", "mcp.example.com"))).status_code == 200
    for second in ("mcp.example.com", "evil.example"):
        for hosts in ((("Host", "mcp.example.com"), ("Host", second)), (("Host", second), ("Host", "mcp.example.com"))):
            assert (await get(resourceserver, METADATA, *hosts)).status_code == 421


async def test_a_request_without_an_origin_is_served(resourceserver: ResourceServer) -> None:
    assert (await get(resourceserver)).status_code == 200


async def test_the_origin_of_the_resource_is_served(resourceserver: ResourceServer) -> None:
    assert (await get(resourceserver, METADATA, ("Origin", OURS))).status_code == 200


@pytest.mark.divergence("D-62")
@pytest.mark.threat("T-029")
@pytest.mark.parametrize(
    "origin",
    [
        *("https://evil.example", "http://mcp.example.com", "https://mcp.example.com.evil.example", "null", ""),
        *("https://mcp.example.com:8443", "https://mcp.example.com/", "mcp.example.com", "file://", "*"),
    ],
)
async def test_another_origin_is_forbidden_before_the_token_is_checked(
    resourceserver: ResourceServer, origin: str
) -> None:
    token = resourceserver.issuer.token()
    ping = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
    assert (await resourceserver.post(ping, token, {"Origin": OURS})).status_code == 200
    response = await resourceserver.post(ping, token, {"Origin": origin})
    assert response.status_code == 403
    assert "www-authenticate" not in response.headers
    assert not any(name.startswith("access-control-") for name in response.headers)


async def test_two_origins_are_refused_even_if_both_are_valid(resourceserver: ResourceServer) -> None:
    assert (await get(resourceserver, METADATA, ("Origin", OURS), ("Origin", OURS))).status_code == 403


@pytest.mark.parametrize("written", ["https://console.example.com", "https://Console.Example.com"])
async def test_further_origins_can_be_allowed(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, written: str
) -> None:
    """A browser sends an origin in lower case (RFC 6454 6.1), whatever the case of the setting."""
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, allowed_origins=f"{written} https://b.example.com"
    ) as server:
        statuses = [
            (await get(server, METADATA, ("Origin", origin))).status_code
            for origin in (OURS, "https://console.example.com", "https://b.example.com", "https://c.example.com")
        ]
    assert statuses == [200, 200, 200, 403]


async def test_on_loopback_every_name_of_this_machine_is_served(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    url = "http://127.0.0.1:8000/.well-known/oauth-protected-resource"
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, resource="http://127.0.0.1:8000/mcp"
    ) as server:
        for host in ("127.0.0.1:8000", "localhost:8000", "[::1]:8000"):
            assert (await get(server, url, ("Host", host), ("Origin", f"http://{host}"))).status_code == 200
        for host in ("127.0.0.1", "localhost:8001", "rebound.example:8000", "127.0.0.1.nip.io:8000", "0.0.0.0:8000"):
            assert (await get(server, url, ("Host", host))).status_code == 421


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
async def test_health_checks_are_served_for_any_host(resourceserver: ResourceServer, path: str) -> None:
    """An orchestrator sends the IP address of the host, and the response has nothing that a web page could use."""
    response = await get(resourceserver, OURS + path, ("Host", "10.0.0.7:8000"))
    assert response.status_code == 200
    assert (await get(resourceserver, OURS + "/mcp", ("Host", "10.0.0.7:8000"))).status_code == 421
