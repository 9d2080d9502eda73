"""Health checks: a server that is alive may not be ready."""

from pathlib import Path

import httpx2
import pytest
from support.clock import FakeClock
from support.databases import Template, take_away
from support.resourceserver import Issuer, ResourceServer, running_resource_server

pytestmark = pytest.mark.anyio

URL = "https://mcp.example.com"


async def test_a_server_that_knows_its_issuers_keys_is_ready(resourceserver: ResourceServer) -> None:
    response = await resourceserver.http.get(f"{URL}/readyz")
    assert response.status_code == 200
    assert response.json() == dict.fromkeys(("status", "database", "issuer_keys", "sessions", "status_lists"), "ok")
    assert response.headers["cache-control"] == "no-store"


async def test_a_server_without_keys_is_alive_and_not_ready(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    issuer = Issuer(clock)
    issuer.away = True
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, keys_of=issuer) as server:
        ready = await server.http.get(f"{URL}/readyz")
        alive = await server.http.get(f"{URL}/livez")
    assert ready.status_code == 503
    assert ready.json() == {
        "status": "unavailable",
        "database": "ok",
        "issuer_keys": "none is known",
        "sessions": "ok",
        "status_lists": "none is known",
    }
    assert (alive.status_code, alive.json()) == (200, {"status": "ok"})


@pytest.mark.both_databases
async def test_a_server_without_a_database_is_alive_and_not_ready(resourceserver: ResourceServer) -> None:
    take_away(resourceserver.settings.database)
    ready = await resourceserver.http.get(f"{URL}/readyz")
    assert ready.status_code == 503
    checks = ready.json()
    assert checks.pop("database") in {"does not answer", "does not accept writes"}, "the heartbeat may be earlier"
    assert checks == {
        "status": "unavailable",
        "issuer_keys": "ok",
        "sessions": "ok",
        "status_lists": "ok",
    }
    assert (await resourceserver.http.get(f"{URL}/livez")).status_code == 200


async def test_a_server_stays_ready_while_its_issuer_is_away(resourceserver: ResourceServer) -> None:
    resourceserver.issuer.away = True
    assert (await resourceserver.http.get(f"{URL}/readyz")).status_code == 200
    assert await resourceserver.result("whoami", resourceserver.issuer.token())


async def test_a_server_whose_session_managers_have_ended_is_not_ready(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock) as server:
        assert (await server.http.get(f"{URL}/readyz")).status_code == 200
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(server.app)) as http:
        ready = await http.get(f"{URL}/readyz")
    server.services.database.close()
    assert (ready.status_code, ready.json()["sessions"]) == (503, "ended")
