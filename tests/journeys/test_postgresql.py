"""Both servers, with two workers each, on one PostgreSQL server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_stack import BIN
from support.databases import PostgreSQL
from support.mcp_client import connect
from support.prepared_stack import PreparedStack

from gatehouse.resourceserver import json_rpc

pytestmark = pytest.mark.anyio


@pytest.fixture
def databases(postgresql: PostgreSQL) -> Iterator[dict[str, str]]:
    """Settings that name an empty database for each server."""
    urls = {name: postgresql.create_database() for name in ("AUTHSERVER", "RESOURCESERVER")}
    yield {f"{name}_DATABASE_URL": url.render_as_string(hide_password=False) for name, url in urls.items()}
    for url in urls.values():
        postgresql.drop_database(url)


@pytest.fixture
def prepared(databases: dict[str, str], tmp_path: Path) -> Iterator[PreparedStack]:
    stack = PreparedStack(tmp_path / "stack", workers=2, settings=databases)
    stack.folder.mkdir()
    try:
        yield stack
    finally:
        stack.stop()


async def test_an_agent_obtains_a_token_calls_is_refused_and_steps_up(prepared: PreparedStack) -> None:
    stack = prepared
    (stack.folder / "var").mkdir()
    stack.init()
    stack.start_all()
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
    credentials = stack.create_client("stepper", "env:read", "--claim", f"workspace_id={workspace}")
    async with connect(stack, credentials, "2026-07-28") as agent:
        assert (await agent.call("whoami"))["client_id"] == credentials["client_id"]
        assert (await agent.call("list_environments"))["environments"] == []
        refusal = await agent.refused("create_environment", name="staging")
        assert refusal.error.code == json_rpc.INSUFFICIENT_SCOPE
        assert refusal.error.data["scope"] == "env:write"
        stack.run(
            *("authserver", "client", "grant", "add", credentials["client_id"]),
            *("--resource", stack.resource, "--scope", "env:write"),
        )
        created = await agent.call_until_granted("create_environment", name="staging")
        assert (await agent.call("list_environments"))["environments"] == [created]
    stack.stop()
    of_client = ("audit", "--client", credentials["client_id"], "--limit", "1000")
    issued = {event["jti"] for event in stack.run_json("authserver", *of_client) if event["action"] == "token.issue"}
    called = stack.run_json("resourceserver", *of_client)
    assert {event["jti"] for event in called} == issued
    assert ("create_environment", "refused") in {(event["object"], event["outcome"]) for event in called}
    assert not list(stack.folder.rglob("*.db")), "no server fell back to a file"


def test_two_concurrent_inits_leave_one_key(prepared: PreparedStack) -> None:
    command = [BIN / "authserver", "init", "--output", "json"]
    inits = [
        subprocess.Popen(
            command, cwd=prepared.folder, env=prepared.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(2)
    ]
    outputs = [process.communicate()[0].decode() for process in inits]
    assert [process.returncode for process in inits] == [0, 0], outputs
    assert sum('"signing_key": "created' in output for output in outputs) == 1
    created = [event for event in prepared.run_json("authserver", "audit") if event["action"] == "key.create"]
    assert len(created) == 1
