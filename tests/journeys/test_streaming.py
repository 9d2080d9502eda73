"""A long import with the official SDK and real processes: progress, disconnect, repetition, refusal."""

import itertools
import sqlite3
import urllib.request
from contextlib import closing, suppress
from typing import Any

import anyio
import pytest
from anyio import to_thread
from local_stack import LocalStack
from mcp.shared.exceptions import MCPError
from support.mcp_client import Agent, Mode, connect

from gatehouse.resourceserver import json_rpc

pytestmark = pytest.mark.anyio
both_versions = pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])

_names = (f"import-{number}" for number in itertools.count())


def organizations(count: int) -> list[dict[str, str]]:
    return [{"name": f"Customer {number}", "external_id": f"crm-{number}"} for number in range(count)]


async def environment_of(agent: Agent) -> str:
    created: str = (await agent.call("create_environment", name=next(_names)))["environment_id"]
    return created


async def listed(agent: Agent, environment_id: str) -> set[str]:
    """Return the identifiers of every organization of an environment."""
    identifiers: set[str] = set()
    page_token = None
    while True:
        sent = {"page_token": page_token} if page_token else {}
        page = await agent.call("list_organizations", environment_id=environment_id, page_size=100, **sent)
        identifiers |= {organization["organization_id"] for organization in page["organizations"]}
        page_token = page["next_page_token"]
        if page_token is None:
            return identifiers


def let_every_worker_respond(stack: LocalStack) -> None:
    """Send enough requests that every worker notices the disconnect."""
    for _ in range(20):
        with urllib.request.urlopen(stack.resource.removesuffix("/mcp") + "/livez") as response:
            assert response.status == 200


async def events_of_import(stack: LocalStack, client_id: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Wait for the final event of an import, and return it with the events of its transactions."""
    command = ("resourceserver", "audit", "--client", client_id, "--limit", "1000")
    with anyio.fail_after(20):
        while True:
            events = await to_thread.run_sync(lambda: stack.run_json(*command))
            of_import = [event for event in events if event["object"] == "import_organizations"]
            ends = [event for event in of_import if "of" in event["detail"]]
            if ends:
                return [event for event in of_import if event not in ends], ends[-1]


def importer(stack: LocalStack, workspace_id: str, scope: str = "env:write org:write") -> dict[str, Any]:
    return stack.create_client("importer", scope, "--claim", f"workspace_id={workspace_id}")


@both_versions
async def test_an_import_reports_progress_and_can_be_repeated(stack: LocalStack, workspace_id: str, mode: Mode) -> None:
    credentials = importer(stack, workspace_id)
    told: list[tuple[float, float | None]] = []
    answered = False

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        assert not answered
        told.append((progress, total))

    async with connect(stack, credentials, mode) as agent:
        environment_id = await environment_of(agent)
        arguments = {"environment_id": environment_id, "organizations": organizations(500)}
        result = await agent.client.call_tool("import_organizations", arguments, progress_callback=on_progress)
        answered = True
        assert result.structured_content is not None
        assert [item["status"] for item in result.structured_content["organizations"]] == ["created"] * 500
        assert told == [(done, 500) for done in range(0, 501, 25)]
        again = await agent.call("import_organizations", **arguments)
        assert (again["created"], again["exists"], again["failed"]) == (0, 500, 0)
        assert len(await listed(agent, environment_id)) == 500


def lock(database: sqlite3.Connection) -> None:
    """Acquire the write lock between two transactions of another process, which SQLite's own wait may miss."""
    while not database.in_transaction:
        with suppress(sqlite3.OperationalError):
            database.execute("BEGIN IMMEDIATE")


@both_versions
async def test_a_disconnect_stops_an_import_and_keeps_what_was_created(
    stack: LocalStack, workspace_id: str, mode: Mode
) -> None:
    credentials = importer(stack, workspace_id)
    arguments: dict[str, Any] = {"organizations": organizations(1000)}
    begun = anyio.Event()

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        if progress > 0:
            begun.set()

    async def follow(agent: Agent) -> None:
        await agent.client.call_tool("import_organizations", arguments, progress_callback=on_progress)

    database = sqlite3.connect(stack.folder / "var" / "resourceserver.db", isolation_level=None, timeout=0)
    with closing(database):
        async with connect(stack, credentials, mode) as agent, anyio.create_task_group() as tasks:
            arguments["environment_id"] = await environment_of(agent)
            tasks.start_soon(follow, agent)
            await begun.wait()
            # No further transaction ends before the agent has disconnected.
            lock(database)
            tasks.cancel_scope.cancel()
        let_every_worker_respond(stack)
        database.execute("ROLLBACK")
    of_transactions, end = await events_of_import(stack, credentials["client_id"])
    assert (end["outcome"], end["reason"]) == ("failed", "the connection was closed before the end")
    async with connect(stack, credentials, mode) as agent:
        stored = await listed(agent, arguments["environment_id"])
        assert 0 < len(stored) < 1000
        assert stored == {identifier for event in of_transactions for identifier in event["detail"]["changed"]}
        assert (end["detail"]["done"], end["detail"]["of"]) == (len(stored), 1000)
        again = await agent.call("import_organizations", **arguments)
        assert (again["exists"], again["created"]) == (len(stored), 1000 - len(stored))


@both_versions
async def test_a_forbidden_import_is_refused_with_its_status(stack: LocalStack, workspace_id: str, mode: Mode) -> None:
    credentials = importer(stack, workspace_id, "env:write org:read")

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        raise AssertionError("there is nothing to tell")

    async with connect(stack, credentials, mode) as agent:
        arguments = {"environment_id": await environment_of(agent), "organizations": organizations(3)}
        with pytest.raises(MCPError) as refused:
            await agent.client.call_tool("import_organizations", arguments, progress_callback=on_progress)
        assert refused.value.error.code == json_rpc.INSUFFICIENT_SCOPE
        assert refused.value.error.data["scope"] == "org:write"
        assert agent.statuses("/mcp").count(403) >= 1
        assert await listed(agent, arguments["environment_id"]) == set()


@both_versions
async def test_an_agent_imports_is_refused_and_continues_after_the_grant(
    stack: LocalStack, workspace_id: str, mode: Mode
) -> None:
    """An environment, 500 organizations with progress, a refusal, a grant, and the same call again."""
    credentials = importer(stack, workspace_id)
    told: list[float] = []

    async def on_progress(progress: float, total: float | None, message: str | None) -> None:
        told.append(progress)

    async with connect(stack, credentials, mode) as agent:
        environment_id = await environment_of(agent)
        arguments = {"environment_id": environment_id, "organizations": organizations(500)}
        imported = await agent.client.call_tool("import_organizations", arguments, progress_callback=on_progress)
        assert imported.structured_content is not None
        assert imported.structured_content["created"] == 500
        assert (told[0], told[-1]) == (0, 500)
        invitation = {"email": f"{next(_names)}@example.com", "role": "member"}
        refusal = await agent.refused("invite_workspace_member", **invitation)
        assert refusal.error.data["scope"] == "wks:write"
        stack.run(
            *("authserver", "client", "grant", "add", credentials["client_id"]),
            *("--resource", stack.resource, "--scope", "wks:write"),
        )
        invited = await agent.call_until_granted("invite_workspace_member", **invitation)
        members = (await agent.call("list_workspace_members", page_size=100))["members"]
        assert invited["user_id"] in {member["user_id"] for member in members}
        assert len(await listed(agent, environment_id)) == 500
