"""A gateway of real processes before a real upstream: policy changes and outages under load."""

import itertools
import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import anyio
import httpx2
import pytest
from local_stack import free_port
from support.limits import VARIABLES
from support.load import Load
from support.mcp_client import Mode, connect
from support.prepared_stack import PreparedStack
from support.waiting import until, wait_until

POLICY = """
[upstream]
url = "http://127.0.0.1:{port}/mcp"
timeout = 5
[scopes."notes:read"]
description = "Read notes"
[scopes."notes:write"]
description = "Write notes"
implies = ["notes:read"]
[tools.whoami]
scopes = ["notes:read"]
[tools.add_note]
scopes = ["notes:write"]
"""


class Upstream:
    """The server behind the gateway, as a process."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.notes = folder / "notes.txt"
        self.notes.touch()
        self._log = (folder / "upstream.log").open("ab")
        self.start()

    def start(self) -> None:
        command = [sys.executable, "-m", "support.notes_upstream", str(self.port), str(self.notes)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        self.process = subprocess.Popen(command, env=environment, stdout=self._log, stderr=self._log)
        wait_until(self._listens)

    def _listens(self) -> bool:
        try:
            httpx2.get(f"http://127.0.0.1:{self.port}/")
        except httpx2.HTTPError:
            return False
        return True

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        self.kill()
        self._log.close()


@pytest.fixture
def upstream(tmp_path: Path) -> Iterator[Upstream]:
    started = Upstream(tmp_path)
    try:
        yield started
    finally:
        started.close()


@pytest.fixture
def gateway(upstream: Upstream, tmp_path: Path) -> Iterator[PreparedStack]:
    """A running installation that serves the upstream, with all of its tools confirmed."""
    stack = PreparedStack(tmp_path / "stack", settings={**VARIABLES, "RESOURCESERVER_UPSTREAM": "policy.toml"})
    stack.folder.mkdir()
    policy = stack.folder / "policy.toml"
    policy.write_text(POLICY.format(port=upstream.port))
    stack.run("authserver", "init")
    stack.run("resourceserver", "init")
    stack.run("resourceserver", "policy", "confirm", "--all", "--yes")
    stack.run("authserver", "resource", "add", stack.resource, "--name", "notes", "--catalogue", "policy.toml")
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop()


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
async def test_a_tool_of_the_upstream_is_refused_granted_and_recorded(gateway: PreparedStack, mode: Mode) -> None:
    credentials = gateway.create_client("agent", "notes:read")
    client_id = credentials["client_id"]
    grant = ("client", "grant", "add", client_id, "--resource", gateway.resource, "--scope", "notes:write")
    async with connect(gateway, credentials, mode) as agent:
        assert await agent.call("whoami") == {"result": "hello"}
        assert [tool.name for tool in (await agent.client.list_tools()).tools] == ["whoami"]
        assert (await agent.refused("add_note", text="milk")).error.data["scope"] == "notes:write"
        gateway.run("authserver", *grant)
        assert await agent.call_until_granted("add_note", text="milk") == {"result": "milk"}
    events = gateway.run_json("resourceserver", "audit", "--client", client_id)
    outcomes = {(event["object"], event["outcome"]) for event in events}
    assert outcomes >= {("whoami", "allowed"), ("add_note", "refused"), ("add_note", "allowed")}


@pytest.mark.anyio
async def test_a_policy_that_changes_under_load_fails_no_call(gateway: PreparedStack) -> None:
    policy = gateway.folder / "policy.toml"
    confirmed = policy.read_text()
    load = Load(gateway, rate=20)
    async with httpx2.AsyncClient(trust_env=False) as http, anyio.create_task_group() as tasks:
        load.add(http, gateway.create_client("agent", "notes:read"))
        tasks.start_soon(load.run)
        await until(lambda: load.tally.calls > 20)
        for content, logged in (
            (f"{confirmed}\n[tools.later]\ndeny = true\n", "version 2 is in force"),
            (f"{confirmed}\n[tools.later]\nscope = 1\n", "the previous policy stays in force"),
            (confirmed, "version 3 is in force"),
        ):
            replacement = policy.with_suffix(".new")
            replacement.write_text(content)
            replacement.rename(policy)
            await until(lambda logged=logged: logged in gateway.log("resourceserver"))
            calls = load.tally.calls
            await until(lambda calls=calls: load.tally.calls > calls + 20)
        tasks.cancel_scope.cancel()
    assert load.tally.failures == []


@pytest.mark.anyio
async def test_no_call_runs_twice_when_the_upstream_is_killed(gateway: PreparedStack, upstream: Upstream) -> None:
    answers: Counter[str] = Counter()
    succeeded: list[str] = []
    numbers, over = itertools.count(), anyio.Event()
    token = gateway.create_client("agent", "notes:write")
    async with httpx2.AsyncClient(trust_env=False) as http:
        form = {"grant_type": "client_credentials"}
        auth = (token["client_id"], token["client_secret"])
        access = (await http.post(f"{gateway.issuer}/token", data=form, auth=auth)).json()["access_token"]
        headers = {"Authorization": f"Bearer {access}", "Accept": "application/json, text/event-stream"}

        async def call() -> None:
            params = {"name": "add_note", "arguments": {"text": f"note-{next(numbers)}"}}
            body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
            answer = (await http.post(gateway.resource, json=body, headers=headers)).json()["result"]
            told = answer["content"][0]["text"]
            if not answer["isError"]:
                succeeded.append(told)
            answers["allowed" if not answer["isError"] else told] += 1

        async def calls() -> None:
            while not over.is_set():
                await call()

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(calls)
            await until(lambda: len(succeeded) > 20)
            upstream.kill()
            await until(lambda: any("Nothing was executed" in told for told in answers))
            await anyio.to_thread.run_sync(upstream.start)
            before = len(succeeded)
            await until(lambda: len(succeeded) > before + 20)
            over.set()
    executed = Counter(upstream.notes.read_text().split())
    assert set(executed.values()) == {1}
    assert executed.keys() >= set(succeeded)
    assert sum(answers.values()) == next(numbers)
    assert len(answers) <= 3, json.dumps(answers)
    assert answers["allowed"] == len(succeeded)
