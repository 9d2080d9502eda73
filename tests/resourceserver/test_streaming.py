"""Streaming tools: progress, the state after a disconnect, and the audit log."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from anyio.abc import TaskStatus
from sqlalchemy import text
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ALL_SCOPES, ResourceServer, running_resource_server
from support.streaming import Stream, streamed, tool_request

from gatehouse.directory.organization_import import IMPORT_BATCH
from gatehouse.shared.protocol.clock import LEEWAY

pytestmark = pytest.mark.anyio

WHOLE = 1000
CLOSED = "the connection was closed before the end"


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Importer:
    """An agent with an environment to import into."""

    def __init__(self, server: ResourceServer, token: str, environment_id: str) -> None:
        self.server = server
        self.token = token
        self.environment_id = environment_id

    def arguments(self, count: int) -> dict[str, Any]:
        organizations = [{"name": f"Customer {number}", "external_id": f"crm-{number}"} for number in range(count)]
        return {"environment_id": self.environment_id, "organizations": organizations}

    @asynccontextmanager
    async def streaming(self, version: str, count: int, progress_token: Any = "p-1") -> AsyncIterator[Stream]:
        body, headers = tool_request(version, "import_organizations", self.arguments(count), progress_token)
        async with streamed(self.server.app, body, headers, self.token) as stream:
            yield stream

    async def import_all(self, count: int) -> dict[str, Any]:
        return await self.server.result("import_organizations", self.token, **self.arguments(count))

    async def stored(self) -> list[str]:
        """Return the identifiers of the organizations that exist, sorted."""
        query = text("SELECT organization_id FROM organization WHERE environment_id = :environment_id")

        def select() -> list[str]:
            with self.server.admin_database.read() as session:
                return sorted(session.scalars(query, {"environment_id": self.environment_id}))

        return await to_thread.run_sync(select)

    async def execute(self, statement: str) -> None:
        """Change the database from a thread: a running import may hold SQLite's write lock."""

        def run() -> None:
            with self.server.admin_database.write() as session:
                session.connection().exec_driver_sql(statement)

        await to_thread.run_sync(run)

    async def events(self, request_id: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """Return the events of a call's transactions, and its final event."""
        events = await to_thread.run_sync(lambda: self.server.audit(request_id=request_id))
        assert all((event["action"], event["object"]) == ("tool.call", "import_organizations") for event in events)
        of_transactions = [event for event in events if "transaction" in event["detail"]]
        return of_transactions, [event for event in events if event not in of_transactions]

    async def end_of(self, request_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        """Wait for the final event of a call, and return it with the events of its transactions."""
        with anyio.fail_after(10):
            while not (events := await self.events(request_id))[1]:
                pass
        (end,) = events[1]
        return events[0], end


def recorded(of_transactions: list[dict[str, Any]]) -> list[str]:
    """Return every identifier that the audit log of a call holds, sorted."""
    return sorted(identifier for event in of_transactions for identifier in event["detail"]["changed"])


async def read_until(events: AsyncIterator[dict[str, Any]], progress: int) -> None:
    """Read until a notification has at least this progress."""
    async for event in events:
        if event["params"]["progress"] >= progress:
            return


async def importer_at(server: ResourceServer) -> Importer:
    token = server.issuer.token(ALL_SCOPES, workspace_id=server.create_workspace())
    environment = await server.result("create_environment", token, name="staging")
    return Importer(server, token, environment["environment_id"])


@pytest.fixture
async def importer(resourceserver: ResourceServer) -> Importer:
    return await importer_at(resourceserver)


# Progress and results


async def test_progress_comes_before_the_result_and_only_grows(importer: Importer, version: str) -> None:
    async with importer.streaming(version, 110) as stream:
        events = [event async for event in stream.events()]
    assert stream.status == 200
    *notifications, answer = events
    assert {event["method"] for event in notifications} == {"notifications/progress"}
    assert [event["params"]["progress"] for event in notifications] == [0, 25, 50, 75, 100, 110]
    assert {(event["params"]["progressToken"], event["params"]["total"]) for event in notifications} == {("p-1", 110)}
    assert answer["id"] == 7
    assert answer["result"]["structuredContent"]["created"] == 110


@pytest.mark.threat("T-043")
@pytest.mark.both_databases
async def test_a_batch_is_committed_before_its_progress_is_reported(importer: Importer, version: str) -> None:
    """No transaction is open while progress is sent, so SQLite's write lock is free for other writers."""
    async with importer.streaming(version, WHOLE) as stream:
        await read_until(stream.events(), 2 * IMPORT_BATCH)
        assert len(await importer.stored()) >= 2 * IMPORT_BATCH
        assert await importer.server.result("create_environment", importer.token, name="meanwhile")


async def test_a_stream_has_the_common_headers_and_is_not_cached_or_buffered(importer: Importer, version: str) -> None:
    async with importer.streaming(version, 1) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        assert stream.headers["cache-control"] == "no-cache, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-content-type-options"] == "nosniff"
        assert stream.headers["x-request-id"].startswith("req_")
        assert "mcp-session-id" not in stream.headers


@pytest.mark.both_databases
async def test_each_organization_has_its_result_by_its_index(importer: Importer) -> None:
    first = await importer.import_all(2)
    organizations = [
        {"name": "Customer 1", "external_id": "crm-1"},
        {"name": "New", "external_id": "crm-new"},
        {"name": "Another name", "external_id": "crm-0"},
        {"name": "New again", "external_id": "crm-new"},
    ]
    result = await importer.server.result(
        "import_organizations",
        importer.token,
        environment_id=importer.environment_id,
        organizations=organizations,
    )
    assert [(item["index"], item["external_id"], item["status"]) for item in result["organizations"]] == [
        (0, "crm-1", "exists"),
        (1, "crm-new", "created"),
        (2, "crm-0", "exists"),
        (3, "crm-new", "failed"),
    ]
    assert (result["created"], result["exists"], result["failed"]) == (1, 2, 1)
    same, new, renamed, repeated = result["organizations"]
    assert [renamed["organization_id"], same["organization_id"]] == [
        item["organization_id"] for item in first["organizations"]
    ]
    assert (same["reason"], new["reason"]) == (None, None)
    assert "another name" in renamed["reason"]
    assert "index 1" in repeated["reason"]
    assert repeated["organization_id"] is None
    listed = await importer.server.result("list_organizations", importer.token, environment_id=importer.environment_id)
    assert sorted(item["name"] for item in listed["organizations"]) == ["Customer 0", "Customer 1", "New"]


@pytest.mark.both_databases
async def test_a_repeated_import_creates_nothing_twice(importer: Importer) -> None:
    first, second = await importer.import_all(60), await importer.import_all(60)
    assert (first["created"], second["created"], second["exists"]) == (60, 0, 60)
    identifiers = [[item["organization_id"] for item in result["organizations"]] for result in (first, second)]
    assert identifiers[0] == identifiers[1]
    assert sorted(identifiers[0]) == await importer.stored()


@pytest.mark.parametrize("count", [0, WHOLE + 1])
async def test_an_import_has_one_to_a_thousand_organizations(importer: Importer, count: int) -> None:
    assert (await importer.import_all(1))["created"] == 1
    failure = await importer.server.failure("import_organizations", importer.token, **importer.arguments(count))
    assert "organizations" in failure
    assert len(await importer.stored()) == 1


async def test_an_import_into_another_workspace_finds_no_environment(importer: Importer) -> None:
    assert (await importer.import_all(1))["created"] == 1
    server = importer.server
    stranger = server.issuer.token(ALL_SCOPES, workspace_id=server.create_workspace("globex"))
    failure = await server.failure("import_organizations", stranger, **importer.arguments(3))
    assert "no such environment" in failure
    assert len(await importer.stored()) == 1


# Streams and JSON


@pytest.mark.divergence("D-20")
@pytest.mark.parametrize("accept", ["application/json", "application/json, text/html", "*/*"])
async def test_a_caller_that_accepts_no_stream_gets_one_json_object(
    importer: Importer, version: str, accept: str
) -> None:
    body, headers = tool_request(version, "import_organizations", importer.arguments(30), "p-1")
    async with streamed(importer.server.app, body, {**headers, "Accept": accept}, importer.token) as answer:
        result = (await answer.body())["result"]
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert result["structuredContent"]["created"] == 30


async def test_a_caller_that_does_not_ask_for_progress_gets_one_json_object(importer: Importer, version: str) -> None:
    async with importer.streaming(version, 30, progress_token=None) as answer:
        result = (await answer.body())["result"]
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert result["structuredContent"]["created"] == 30


@pytest.mark.divergence("D-20")
async def test_a_tool_that_is_not_streaming_reports_no_progress(importer: Importer, version: str) -> None:
    body, headers = tool_request(version, "whoami", {}, "p-1")
    async with streamed(importer.server.app, body, headers, importer.token) as answer:
        result = (await answer.body())["result"]
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    assert result["structuredContent"]["client_id"] == "agent_1"


@pytest.mark.threat("T-045")
@pytest.mark.parametrize("scope", [None, "org:read"])
async def test_a_refusal_has_its_status_and_opens_no_stream(
    importer: Importer, version: str, scope: str | None
) -> None:
    async with importer.streaming(version, 1) as stream:
        assert stream.status == 200
    body, headers = tool_request(version, "import_organizations", importer.arguments(3), "p-1")
    token = importer.server.issuer.token(scope) if scope else None
    async with streamed(importer.server.app, body, headers, token) as refused:
        error = (await refused.body())["error"]
    assert (refused.status, error["code"]) == ((403, -31043) if scope else (401, -31041))
    assert refused.headers["content-type"] == "application/json"
    assert "org:write" in refused.headers["www-authenticate"]


@pytest.mark.parametrize("progress_token", [True, 1.5, 1.0, "x" * 129, 2**63, ["p"], {"p": 1}])
async def test_a_progress_token_is_a_short_string_or_a_whole_number(
    importer: Importer, version: str, progress_token: Any
) -> None:
    for sound in ("x" * 128, 0, 2**63 - 1):
        async with importer.streaming(version, 1, sound) as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert (await anext(stream.events()))["params"]["progressToken"] == sound
    async with importer.streaming(version, 1, progress_token) as refused:
        error = (await refused.body())["error"]
    assert (refused.status, error["code"]) == (400, -32602)
    assert "progressToken" in error["message"]


# Disconnects and cancellation


@pytest.mark.divergence("D-18")
@pytest.mark.threat("T-042")
async def test_an_import_stops_when_its_caller_leaves_and_is_recorded(importer: Importer, version: str) -> None:
    async with importer.streaming(version, WHOLE) as stream:
        await read_until(stream.events(), IMPORT_BATCH)
        stream.leave()
        of_transactions, end = await importer.end_of(stream.headers["x-request-id"])
    assert (end["outcome"], end["reason"], end["detail"]["of"]) == ("failed", CLOSED, WHOLE)
    stored = await importer.stored()
    assert IMPORT_BATCH <= len(stored) < WHOLE
    assert recorded(of_transactions) == stored
    assert end["detail"]["done"] == len(stored)
    assert {event["outcome"] for event in of_transactions} == {"allowed"}
    again = await importer.import_all(WHOLE)
    assert (again["exists"], again["created"]) == (len(stored), WHOLE - len(stored))


async def test_an_import_has_an_event_per_transaction_and_one_at_its_end(importer: Importer, version: str) -> None:
    async with importer.streaming(version, 60) as stream:
        assert [event async for event in stream.events()]
        of_transactions, ends = await importer.events(stream.headers["x-request-id"])
    assert [event["detail"]["transaction"] for event in of_transactions] == [1, 2, 3]
    assert recorded(of_transactions) == await importer.stored()
    assert [(end["outcome"], end["detail"]) for end in ends] == [
        ("allowed", {"done": 60, "of": 60, "environment_id": importer.environment_id})
    ]
    assert len({(event["jti"], event["actor"]) for event in (*of_transactions, *ends)}) == 1


@pytest.mark.divergence("D-19")
@pytest.mark.threat("T-048")
async def test_a_notification_of_cancellation_has_no_effect(importer: Importer, version: str) -> None:
    """Without sessions, any caller could cancel another's request by guessing its id."""
    cancelled = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 7}}
    async with importer.streaming(version, WHOLE) as stream:
        events = stream.events()
        assert (await anext(events))["params"]["progress"] == 0
        answer = await importer.server.post(cancelled, importer.token, {"MCP-Protocol-Version": version})
        assert answer.status_code == 202
        *_, last = [event async for event in events]
    assert last["result"]["structuredContent"]["created"] == WHOLE


@pytest.mark.threat("T-042")
async def test_an_import_that_a_shutdown_cancels_is_recorded(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """In 2025-11-25 the tool runs in a task of the session manager, which ends with the application."""
    looked = anyio.Event()

    async def follow(*, task_status: TaskStatus[str]) -> None:
        async with importer.streaming("2025-11-25", WHOLE) as stream:
            assert await anext(stream.events())
            task_status.started(stream.headers["x-request-id"])
            await looked.wait()

    async with anyio.create_task_group() as tasks:
        async with running_resource_server(tmp_path / "rs", resourceserver_template, clock) as server:
            importer = await importer_at(server)
            request_id = await tasks.start(follow)
        of_transactions, (end,) = await importer.events(request_id)
        assert (end["outcome"], end["reason"]) == ("failed", CLOSED)
        assert recorded(of_transactions) == await importer.stored()
        server.admin_database.close()
        looked.set()


@pytest.mark.threat("T-042")
@pytest.mark.both_databases
async def test_items_that_the_database_does_not_accept_are_reported(importer: Importer, version: str) -> None:
    async with importer.streaming(version, WHOLE) as stream:
        events = stream.events()
        await read_until(events, IMPORT_BATCH)
        await importer.execute("ALTER TABLE organization RENAME TO gone")
        *_, last = [event async for event in events]
        await importer.execute("ALTER TABLE gone RENAME TO organization")
        of_transactions, end = await importer.end_of(stream.headers["x-request-id"])
    result = last["result"]["structuredContent"]
    assert result["failed"] > 0
    assert [item["index"] for item in result["organizations"]] == list(range(WHOLE))
    made = sorted(item["organization_id"] for item in result["organizations"] if item["status"] == "created")
    assert made == await importer.stored() == recorded(of_transactions)
    failed = {item["reason"] for item in result["organizations"] if item["status"] == "failed"}
    assert failed == {"The server cannot process this request now. Try again in a few seconds."}
    assert (end["outcome"], end["detail"]["done"], end["detail"]["of"]) == ("allowed", len(made), WHOLE)


@pytest.mark.threat("T-044")
async def test_an_import_ends_when_its_token_expires(importer: Importer, clock: FakeClock, version: str) -> None:
    """A caller that reads slowly extends its call, but not the lifetime of its token."""
    async with importer.streaming(version, WHOLE) as stream:
        events = stream.events()
        await read_until(events, IMPORT_BATCH)
        clock.advance(300 + LEEWAY)
        *_, last = [event async for event in events]
        of_transactions, _ = await importer.end_of(stream.headers["x-request-id"])
    result = last["result"]["structuredContent"]
    made = sorted(item["organization_id"] for item in result["organizations"] if item["status"] == "created")
    assert made == await importer.stored() == recorded(of_transactions)
    assert 0 < result["failed"] == WHOLE - len(made)
    assert "token expired" in result["organizations"][-1]["reason"]


@pytest.mark.both_databases
async def test_nothing_is_created_whose_event_cannot_be_recorded(importer: Importer, version: str) -> None:
    assert (await importer.import_all(1))["created"] == 1
    await importer.execute("DROP TABLE audit_event")
    async with importer.streaming(version, 3) as stream:
        *_, last = [event async for event in stream.events()]
    assert last["result"]["isError"]
    assert "may have been carried out in part" in last["result"]["content"][0]["text"]
    assert len(await importer.stored()) == 1
