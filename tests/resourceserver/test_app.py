"""The application as a whole: the headers of every response, and the response to a failure."""

import json
from pathlib import Path
from typing import Any

import pytest
from support.audit import verification
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import (
    CATALOGUE,
    ISSUER,
    LIST,
    RESOURCE,
    Issuer,
    ResourceServer,
    running_resource_server,
    settings_in,
)

from gatehouse.resourceserver.app import create_services
from gatehouse.resourceserver.bearer.verifier import Verifier
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_tables
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.fetch import Fetch

pytestmark = pytest.mark.anyio

ORIGIN = "https://mcp.example.com"


@pytest.mark.both_databases
async def test_a_server_that_stops_writes_a_checkpoint_of_its_audit_log(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(tmp_path / "resourceserver", resourceserver_template, clock) as server:
        assert (await server.call("whoami", server.issuer.token())).status_code == 200
    with Database(server.settings.database) as database:
        found = verification(database.engine, audit_tables, AuditKeys.read(server.settings.audit_keys))
    assert found == (1, 1, None)


@pytest.mark.parametrize("path", ["/mcp", "/livez", "/.well-known/oauth-protected-resource", "/none"])
async def test_every_response_has_the_same_security_headers(resourceserver: ResourceServer, path: str) -> None:
    for headers in ({}, {"Host": "evil.example"}):
        response = await resourceserver.http.get(ORIGIN + path, headers=headers)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in response.headers["content-security-policy"]
        assert response.headers["referrer-policy"] == "no-referrer"
        assert response.headers["x-request-id"].startswith("req_")
        assert "set-cookie" not in response.headers


async def test_a_request_id_never_comes_from_the_caller(resourceserver: ResourceServer) -> None:
    response = await resourceserver.http.get(f"{ORIGIN}/livez", headers={"X-Request-Id": "req_forged"})
    assert response.headers["x-request-id"] != "req_forged"


async def test_a_failure_is_answered_once_with_only_the_request_id(resourceserver: ResourceServer) -> None:
    """Two responses to one request would break the connection, or be read as the next one's (ASGI 3, HTTP)."""
    answers: list[dict[str, Any]] = []

    async def receive() -> Any:
        raise OSError("the transport broke at /srv/secret/path")

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/mcp",
        "raw_path": b"/mcp",
        "query_string": b"",
        "root_path": "",
    }
    await resourceserver.app({**scope, "headers": [(b"host", b"mcp.example.com")]}, receive, send)
    starts = [answer for answer in answers if answer["type"] == "http.response.start"]
    assert [start["status"] for start in starts] == [500]
    body = b"".join(answer.get("body", b"") for answer in answers)
    assert b"secret" not in body
    assert json.loads(body)["request_id"] == dict(starts[0]["headers"])[b"x-request-id"].decode()


@pytest.mark.divergence("D-66")
async def test_keys_and_status_lists_come_from_the_internal_address(
    resourceserver_template: Template, tmp_path: Path, clock: FakeClock
) -> None:
    """The claims of tokens and lists keep the public issuer."""
    inner = "http://authserver:9000"
    issuer = Issuer(clock)
    fetched: list[str] = []

    def fetch_from(url: str) -> Fetch:
        fetched.append(url)
        assert url.startswith(f"{inner}/")
        return issuer.fetch_from(url.replace(inner, ISSUER))

    tmp_path.joinpath("var").mkdir()
    url = resourceserver_template.install(tmp_path / "var")
    settings = settings_in(tmp_path / "var", database_url=url, issuer_internal_url=inner)
    services = create_services(settings, CATALOGUE, clock, fetch_from)
    await services.keys.refresh()
    await services.statuses.refresh()
    verifier = Verifier(ISSUER, RESOURCE, services.keys, services.statuses, clock)
    assert await verifier.verify(issuer.token(iss=ISSUER))
    assert fetched == [f"{inner}/.well-known/jwks.json", f"{inner}/status-lists", LIST.replace(ISSUER, inner)]
    services.audit_database.close()
    services.database.close()
    await services.http_client.aclose()
