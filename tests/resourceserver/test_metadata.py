"""Protected resource metadata (RFC 9728): its URL and its content."""

from pathlib import Path

import pytest
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

pytestmark = pytest.mark.anyio

ORIGIN = "https://mcp.example.com"
WELL_KNOWN = "/.well-known/oauth-protected-resource"


@pytest.mark.divergence("D-59")
@pytest.mark.parametrize("path", [f"{WELL_KNOWN}/mcp", WELL_KNOWN])
async def test_the_document_is_public_at_both_well_known_paths(resourceserver: ResourceServer, path: str) -> None:
    """RFC 9728 3.1 has the path form; MCP clients try the root form after it."""
    response = await resourceserver.http.get(ORIGIN + path)
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "public, max-age=300"
    assert response.json() == {
        "resource": "https://mcp.example.com/mcp",
        "authorization_servers": ["https://as.example.com"],
        "bearer_methods_supported": ["header"],
        "scopes_supported": ["env:read", "env:write", "org:read", "org:write", "wks:read", "wks:write"],
        "resource_name": "Gatehouse",
    }


async def test_a_challenge_names_the_url_of_the_document(resourceserver: ResourceServer) -> None:
    challenge = (await resourceserver.call("whoami")).headers["www-authenticate"]
    assert f'resource_metadata="{ORIGIN}{WELL_KNOWN}/mcp"' in challenge
    assert (await resourceserver.http.get(f"{ORIGIN}{WELL_KNOWN}/mcp")).status_code == 200


async def test_a_resource_without_a_path_has_the_root_form_only(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, resource=f"{ORIGIN}/"
    ) as server:
        document = await server.http.get(ORIGIN + WELL_KNOWN)
        assert document.json()["resource"] == ORIGIN
        challenge = (await server.call("whoami")).headers["www-authenticate"]
        assert f'resource_metadata="{ORIGIN}{WELL_KNOWN}"' in challenge
        assert (await server.call("whoami", server.issuer.token(aud=ORIGIN))).status_code == 200


@pytest.mark.parametrize(
    "path", ["/mcp/", "/MCP", "/mcp/x", "//mcp", "/", f"{WELL_KNOWN}/", f"{WELL_KNOWN}/other", "/.env", "/docs"]
)
async def test_no_other_path_answers_or_redirects(resourceserver: ResourceServer, path: str) -> None:
    """A redirect would send a client, and its token, to another resource."""
    headers = {"Authorization": f"Bearer {resourceserver.issuer.token()}"}
    for method in ("GET", "POST"):
        response = await resourceserver.http.request(method, ORIGIN + path, headers=headers)
        assert response.status_code == 404
        assert "location" not in response.headers
        assert response.json()["request_id"] == response.headers["x-request-id"]


async def test_the_document_accepts_only_get(resourceserver: ResourceServer) -> None:
    response = await resourceserver.http.post(f"{ORIGIN}{WELL_KNOWN}/mcp", json={})
    assert response.status_code == 405


async def test_forwarded_headers_change_nothing(resourceserver: ResourceServer) -> None:
    """The document comes from the settings: a request must not put another authorization server into a cache."""
    plain = await resourceserver.http.get(f"{ORIGIN}{WELL_KNOWN}")
    forged = await resourceserver.http.get(
        f"{ORIGIN}{WELL_KNOWN}",
        headers={
            "X-Forwarded-Host": "evil.example",
            "X-Forwarded-Proto": "http",
            "Forwarded": "host=evil.example",
            "X-Original-URL": "/evil",
        },
    )
    assert forged.json() == plain.json()
