"""Every streaming tool: its transactions, its audit events, and its authorization in dispatch."""

import threading
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio import to_thread
from mcp.server.streamable_http_manager import StreamableHTTPASGIApp
from pydantic import BaseModel
from sqlalchemy import text
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import Issuer, ResourceServer, running_resource_server, settings_in
from support.streaming import Stream, streamed, tool_request
from support.ungated import Attach, attaching, nothing, proven

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.environments import create_environment
from gatehouse.directory.organization_import import NewOrganization, import_batch
from gatehouse.resourceserver.app import create_services
from gatehouse.resourceserver.catalogue import Catalogue, Progress, Scope, ToolGroup, Transactions
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.dispatch.progress import CallProgress
from gatehouse.resourceserver.dispatch.transactions import LISTED

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Done(BaseModel):
    """The result of the tools."""

    environments: list[str]


def catalogue_of(tool: Callable[..., Awaitable[Done]], **options: Any) -> Catalogue:
    """Return a catalogue with one streaming tool."""
    group = ToolGroup()
    group.tool(**{"scopes": ["env:write"], "read_only": False, "streaming": True, **options})(tool)
    return Catalogue("test", [Scope("env:write", "Write")], [group], providers={Directory: open_directory})


async def result_of(stream: Stream) -> dict[str, Any]:
    *_, last = [event async for event in stream.events()]
    result: dict[str, Any] = last["result"]
    return result


async def events_of(server: ResourceServer, stream: Stream) -> list[dict[str, Any]]:
    request_id = stream.headers["x-request-id"]
    return await to_thread.run_sync(lambda: server.audit(request_id=request_id))


def environments(server: ResourceServer) -> list[str]:
    with server.admin_database.read() as session:
        return list(session.scalars(text("SELECT name FROM environment ORDER BY name")))


async def test_progress_is_sent_only_when_it_grows() -> None:
    told: list[tuple[float, float | None, str | None]] = []

    async def notify(*values: Any) -> None:
        told.append(values)

    progress = CallProgress(notify)
    assert (progress.done, progress.total) == (0, None)
    for done in (0, 0, 3, 2, 5):
        await progress.report(done, 5)
    await progress.report(6, 6, "one more")
    assert told == [(0, 5, None), (3, 5, None), (5, 5, None), (6, 6, "one more")]
    assert (progress.done, progress.total) == (6, 6)


async def test_a_transaction_ends_normally_when_the_caller_leaves(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def create_first(directory: Directory) -> None:
        create_environment(directory, "first", "staging")
        inside.set()
        go_on.wait()

    async def create_two(transactions: Transactions, progress: Progress) -> Done:
        """Create two environments."""
        await progress.report(0, 2)
        await transactions.run(Directory, create_first)
        await transactions.run(Directory, create_environment, "second", "staging")
        return Done(environments=["first", "second"])

    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue_of(create_two)
    ) as server:
        token = server.issuer.token("env:write", workspace_id=server.create_workspace())
        body, headers = tool_request(version, "create_two", {}, "p-1")
        async with streamed(server.app, body, headers, token) as stream:
            await anext(stream.events())
            await to_thread.run_sync(inside.wait)
            stream.leave()
            await anyio.wait_all_tasks_blocked()
            before = await events_of(server, stream)
            go_on.set()
            with anyio.fail_after(10):
                while len(events := await events_of(server, stream)) < 2:
                    pass
        assert environments(server) == ["first"]
    assert before == []
    assert [(event["outcome"], event["detail"].get("transaction")) for event in events] == [
        ("allowed", 1),
        ("failed", None),
    ]


def create_organizations(directory: Directory, count: int) -> str:
    environment = create_environment(directory, "first", "staging")
    batch = {index: NewOrganization(name="A", external_id=f"a-{index}") for index in range(count)}
    import_batch(directory, environment.environment_id, batch)
    return environment.environment_id


async def test_a_transaction_with_many_changes_records_all_of_them(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async def create_many(transactions: Transactions, progress: Progress) -> Done:
        """Create an environment with more organizations than one event lists."""
        await progress.report(0, 1)
        environment_id = await transactions.run(Directory, create_organizations, LISTED + 20)
        await transactions.run(Directory, lambda _: None)
        return Done(environments=[environment_id])

    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue_of(create_many)
    ) as server:
        token = server.issuer.token("env:write", workspace_id=server.create_workspace())
        body, headers = tool_request("2026-07-28", "create_many", {}, "p-1")
        async with streamed(server.app, body, headers, token) as stream:
            assert not (await result_of(stream))["isError"]
            *of_transactions, _ = await events_of(server, stream)
        with server.admin_database.read() as session:
            stored = set(session.scalars(text("SELECT organization_id FROM organization")))
    sizes = [(event["detail"]["transaction"], len(event["detail"]["changed"])) for event in of_transactions]
    assert sizes == [(1, LISTED), (1, 21), (2, 0)]
    changed = [identifier for event in of_transactions for identifier in event["detail"]["changed"]]
    assert stored < set(changed)
    assert len(changed) == len(set(changed)) == LISTED + 21


def create_and_break(directory: Directory) -> None:
    create_environment(directory, "second", "staging")
    raise RuntimeError("postgresql://admin:hunter2@db/var/lib")


@pytest.mark.threat("T-042")
async def test_a_broken_streaming_tool_keeps_its_transactions_and_its_progress(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    async def break_half_way(transactions: Transactions, progress: Progress) -> Done:
        """Create one environment, then fail unexpectedly."""
        await transactions.run(Directory, create_environment, "first", "staging")
        await progress.report(1, 2)
        await transactions.run(Directory, create_and_break)
        return Done(environments=[])

    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue_of(break_half_way)
    ) as server:
        token = server.issuer.token("env:write", workspace_id=server.create_workspace())
        body, headers = tool_request(version, "break_half_way", {}, "p-1")
        async with streamed(server.app, body, headers, token) as stream:
            result = await result_of(stream)
            first, end = await events_of(server, stream)
        assert environments(server) == ["first"]
    assert result["isError"]
    assert stream.headers["x-request-id"] in str(result)
    assert "hunter2" not in str(result)
    assert (first["outcome"], len(first["detail"]["changed"])) == ("allowed", 1)
    assert (end["outcome"], end["reason"], end["detail"]) == (
        "failed",
        "internal error: RuntimeError",
        {"done": 1, "of": 2},
    )


async def test_without_a_workspace_no_transaction_begins(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async def create_one(transactions: Transactions, progress: Progress) -> Done:
        """Create one environment."""
        await transactions.run(Directory, create_environment, "first", "staging")
        await progress.report(1, 1)
        return Done(environments=["first"])

    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue_of(create_one)
    ) as server:
        workspace = server.create_workspace()
        assert await server.result("create_one", server.issuer.token("env:write", workspace_id=workspace))
        failure = await server.failure("create_one", server.issuer.token("env:write"))
        assert "acts in no workspace" in failure
        assert server.audit()[-1]["reason"] == "the token has no claim workspace_id"


async def test_a_streaming_tool_may_change_nothing(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    async def count(progress: Progress) -> Done:
        """Count to two."""
        for done in range(3):
            await progress.report(done, 2)
        return Done(environments=[])

    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, catalogue_of(count, read_only=True)
    ) as server:
        body, headers = tool_request(version, "count", {}, "p-1")
        async with streamed(server.app, body, headers, server.issuer.token("env:write")) as stream:
            assert len([event async for event in stream.events()]) == 4
            (event,) = await events_of(server, stream)
    assert (event["outcome"], event["detail"]) == ("allowed", {"done": 2, "of": 2})


@pytest.mark.threat("T-045")
async def test_with_the_gate_removed_a_streaming_tool_is_still_refused(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    """The SDK's second session manager without a gate; the test attaches what the gate would."""
    settings = settings_in(tmp_path, database_url=resourceserver_template.install(tmp_path))
    services = create_services(settings, CATALOGUE, clock, Issuer(clock).fetch_from)
    organizations = [{"name": "A", "external_id": "a"}]
    arguments = {"environment_id": f"env_{'0' * 26}", "organizations": organizations}
    body, headers = tool_request(version, "import_organizations", arguments, "p-1")

    async def answer(attach: Attach) -> dict[str, Any]:
        app = attaching(StreamableHTTPASGIApp(services.streams), attach)
        async with streamed(app, body, headers, None) as stream:
            if stream.headers["content-type"] == "application/json":
                return dict(await stream.body())
            *_, last = [event async for event in stream.events()]
            return dict(last)

    async with services.streams.run(), services.http_client:
        allowed = await answer(proven("org:write"))
        assert "acts in no workspace" in allowed["result"]["content"][0]["text"]
        assert (await answer(nothing))["error"]["code"] == -31041
        assert (await answer(proven("org:read")))["error"]["code"] == -31043
    await to_thread.run_sync(services.audit.close)
    with closing(services.audit_database), services.audit_database.read() as session:
        assert session.scalar(text("SELECT count(*) FROM organization")) == 0
    services.database.close()


@pytest.mark.only_on("postgresql")
async def test_an_organization_of_a_concurrent_transaction_exists(
    resourceserver: ResourceServer,
) -> None:
    """SQLite has one writer, so no transaction sees a part of another one."""
    server = resourceserver
    token = server.issuer.token("env:write org:write", workspace_id=server.create_workspace())
    environment = await server.result("create_environment", token, name="staging")
    results: list[dict[str, Any]] = []

    async def run_import() -> None:
        organizations = [{"name": f"A{number}", "external_id": f"a-{number}"} for number in range(3)]
        results.append(
            await server.result(
                "import_organizations",
                token,
                environment_id=environment["environment_id"],
                organizations=organizations,
            )
        )

    observer = Database(server.settings.database)

    def waiting() -> bool:
        with observer.read() as session:
            return bool(session.scalar(text("SELECT count(*) FROM pg_locks WHERE NOT granted")))

    row = {"organization": f"org_{'0' * 26}", "environment": environment["environment_id"]}
    async with anyio.create_task_group() as tasks:
        with closing(observer), server.admin_database.engine.connect() as other, other.begin():
            other.execute(text("INSERT INTO organization VALUES (:organization, :environment, 'A1', 'a-1', 0)"), row)
            tasks.start_soon(run_import)
            with anyio.fail_after(10):
                while not await to_thread.run_sync(waiting):
                    pass
    (result,) = results
    assert [item["status"] for item in result["organizations"]] == ["created", "exists", "created"]
    assert result["organizations"][1]["organization_id"] == row["organization"]
