"""Health checks: a server that is alive may not be ready."""

import threading
from pathlib import Path

import anyio
import httpx2
import pytest
from support.clock import FakeClock
from support.databases import Template, take_away
from support.locking import locked
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


@pytest.mark.parametrize("request_of", ["write", "refusal", "forbidden tool"])
async def test_waiting_for_a_locked_database_delays_no_other_request(
    resourceserver: ResourceServer, request_of: str
) -> None:
    """16 requests wait for the write lock in threads, and the event loop serves the next request."""
    issuer, workspace = resourceserver.issuer, resourceserver.create_workspace()
    tool, token, status = {
        "write": ("create_environment", issuer.token("env:write", workspace_id=workspace), 200),
        "refusal": ("whoami", "none", 401),
        "forbidden tool": ("create_environment", issuer.token("env:read", workspace_id=workspace), 403),
    }[request_of]
    statuses: list[int] = []

    async def call(number: int) -> None:
        arguments = {"name": f"env-{number}"} if tool == "create_environment" else {}
        statuses.append((await resourceserver.call(tool, token, **arguments)).status_code)

    async with anyio.create_task_group() as tasks:
        with locked(Path(str(resourceserver.settings.database.database))) as waiters:
            for number in range(16):
                tasks.start_soon(call, number)
            await anyio.to_thread.run_sync(waiters.wait_for_one)
            assert (await resourceserver.http.get(f"{URL}/livez")).status_code == 200
            assert statuses == []
        assert threading.get_ident() not in waiters.threads
    assert statuses == [status] * 16
