"""Browser clients: a page of an allowed origin can call, and read every answer.

Sources: Fetch, "CORS protocol"; IBM/mcp-context-forge#2152, devondragon/MotionMCP#138, adcontextprotocol/adcp#1136,
envoyproxy/ai-gateway#2307 (preflights that were authenticated or refused, headers that pages could not read).
"""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ISSUER, ResourceServer, modern_request, running_resource_server

from gatehouse.resourceserver.bearer.gate import Gate

pytestmark = pytest.mark.anyio

PAGE = "https://app.example.com"
BASE = "https://mcp.example.com"
METADATA = "/.well-known/oauth-protected-resource"
PATHS = ["/mcp", METADATA, f"{METADATA}/mcp"]
REQUESTED = "authorization,content-type,mcp-method,mcp-name,mcp-protocol-version"


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    """A resource server that PAGE may call."""
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, allowed_origins=f"http://localhost:6274 {PAGE}"
    ) as server:
        yield server


async def preflight(server: ResourceServer, path: str, origin: str = PAGE) -> httpx2.Response:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": REQUESTED}
    return await server.http.request("OPTIONS", BASE + path, headers={"Origin": origin, **asks})


def cors_headers(response: httpx2.Response) -> set[str]:
    return {name for name in response.headers if name.startswith("access-control-")}


def assert_readable(response: httpx2.Response) -> None:
    """Check that a browser lets the page read the response."""
    assert response.headers.get_list("access-control-allow-origin") == [PAGE]
    assert response.headers["vary"] == "Origin"
    assert {"WWW-Authenticate", "X-Request-Id"} <= set(response.headers["access-control-expose-headers"].split(", "))
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize("path", PATHS)
async def test_a_preflight_is_answered_without_a_token_or_an_audit_event(server: ResourceServer, path: str) -> None:
    response = await preflight(server, path)
    assert (response.status_code, response.content) == (204, b"")
    assert_readable(response)
    allowed = response.headers["access-control-allow-headers"].lower().split(", ")
    assert set(REQUESTED.split(",")) <= set(allowed)
    assert ("POST" if path == "/mcp" else "GET") in response.headers["access-control-allow-methods"]
    assert response.headers["x-request-id"].startswith("req_")
    assert server.audit() == []


@pytest.mark.threat("T-029", "T-137")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{PAGE}.evil.example", "http://app.example.com", "*"]
)
async def test_a_preflight_of_another_origin_is_refused(server: ResourceServer, path: str, origin: str) -> None:
    assert (await preflight(server, path)).status_code == 204
    response = await preflight(server, path, origin)
    assert response.status_code == 403
    assert (cors_headers(response), response.headers["vary"]) == (set(), "Origin")
    [event] = server.audit(request_id=response.headers["x-request-id"])
    assert "RESOURCESERVER_ALLOWED_ORIGINS" in event["detail"]["remediation"]


async def test_a_preflight_for_another_host_is_misdirected(server: ResourceServer) -> None:
    """CVE-2025-66416: DNS rebinding."""
    asks = {"Origin": PAGE, "Access-Control-Request-Method": "POST", "Host": "evil.example"}
    assert (await server.http.request("OPTIONS", f"{BASE}/mcp", headers=asks)).status_code == 421


PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}
UNKNOWN_METHOD = modern_request("logging/setLevel")
FORBIDDEN = modern_request("tools/call", name="create_environment", arguments={"name": "x"})


@pytest.mark.parametrize(
    ("status", "body", "changes"),
    [
        (200, PING, {}),
        (202, {"jsonrpc": "2.0", "method": "notifications/initialized"}, {}),
        (400, b"{", {}),
        (401, PING, {"Authorization": "Bearer none"}),
        (403, FORBIDDEN[0], FORBIDDEN[1]),
        (404, UNKNOWN_METHOD[0], UNKNOWN_METHOD[1]),
        (406, PING, {"Accept": "text/html"}),
        (413, b" " * (1024 * 1024 + 1), {}),
        (415, PING, {"Content-Type": "text/plain"}),
    ],
)
async def test_a_page_can_read_every_answer(
    server: ResourceServer, status: int, body: Any, changes: dict[str, str]
) -> None:
    token = server.issuer.token("env:read")
    response = await server.post(body, token, {"Origin": PAGE, **changes})
    assert response.status_code == status
    assert_readable(response)
    without = await server.post(body, token, changes)
    assert (without.status_code, cors_headers(without), without.headers["vary"]) == (status, set(), "Origin")


@pytest.mark.parametrize("method", ["GET", "DELETE"])
async def test_a_page_can_read_the_405_of_the_endpoint(server: ResourceServer, method: str) -> None:
    headers = {"Origin": PAGE, "Authorization": f"Bearer {server.issuer.token()}"}
    response = await server.http.request(method, f"{BASE}/mcp", headers=headers)
    assert response.status_code == 405
    assert_readable(response)
    assert method in (await preflight(server, "/mcp")).headers["access-control-allow-methods"]


@pytest.mark.parametrize("path", PATHS[1:])
async def test_a_page_can_read_the_metadata_and_its_405(server: ResourceServer, path: str) -> None:
    for method, status in (("GET", 200), ("GET", 200), ("POST", 405)):
        response = await server.http.request(method, BASE + path, headers={"Origin": PAGE})
        assert response.status_code == status
        assert_readable(response)
    response = await server.http.get(BASE + path)
    assert (cors_headers(response), response.headers["vary"]) == (set(), "Origin")


async def test_a_page_can_read_the_503_of_an_outage(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, allowed_origins=PAGE) as server:
        server.services.audit.close()
        response = await server.post(PING, None, {"Origin": PAGE})
    assert response.status_code == 503
    assert_readable(response)
    assert "Retry-After" in response.headers["access-control-expose-headers"]


async def test_a_page_can_read_the_500_of_a_failure(server: ResourceServer, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*_: object) -> None:
        raise OSError("a defect")

    assert (await server.post(PING, server.issuer.token(), {"Origin": PAGE})).status_code == 200
    monkeypatch.setattr(Gate, "_admit", fail)
    app: Any = httpx2.ASGITransport(server.app, raise_app_exceptions=False)
    async with httpx2.AsyncClient(transport=app) as http:
        response = await http.post(f"{BASE}/mcp", headers={"Origin": PAGE})
    assert response.status_code == 500
    assert_readable(response)


@pytest.mark.parametrize("path", ["/livez", "/readyz", "/none", "/mcp/"])
async def test_pages_cannot_read_other_paths(server: ResourceServer, path: str) -> None:
    response = await server.http.get(BASE + path, headers={"Origin": PAGE})
    assert cors_headers(response) == set()
    assert cors_headers(await preflight(server, path)) == set()


async def test_an_options_request_that_is_no_preflight_needs_a_token(server: ResourceServer) -> None:
    response = await server.http.request("OPTIONS", f"{BASE}/mcp", headers={"Origin": PAGE})
    assert response.status_code == 401
    assert ISSUER not in response.text
