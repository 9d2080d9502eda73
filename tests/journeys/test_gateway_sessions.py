"""A gateway with two workers before an upstream that keeps something of its callers: a program, or an HTTP server."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx2
import pytest
from local_stack import child_processes
from support.limits import VARIABLES
from support.prepared_stack import PreparedStack
from support.sdk_upstream import sdk_upstream

PROGRAM = Path(__file__).parents[1] / "support" / "counting_program.py"
POLICY = """
[upstream]
{upstream}
[scopes."count"]
description = "Count"
[tools.count]
scopes = ["count"]
"""


@pytest.fixture
def gateway(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[PreparedStack]:
    """A running installation. The parameter tells whether all callers share one process."""
    stack = PreparedStack(tmp_path, settings={**VARIABLES, "RESOURCESERVER_UPSTREAM": "policy.toml"})
    command = json.dumps([sys.executable, str(PROGRAM)])
    try:
        start(stack, f"command = {command}\nshared = {str(request.param).lower()}")
        yield stack
    finally:
        stack.stop()


def start(stack: PreparedStack, upstream: str) -> None:
    """Start both servers, with a confirmed policy."""
    (stack.folder / "policy.toml").write_text(POLICY.format(upstream=upstream))
    stack.run("authserver", "init")
    stack.run("resourceserver", "init")
    stack.run("resourceserver", "policy", "confirm", "--all", "--yes")
    stack.run("authserver", "resource", "add", stack.resource, "--name", "counter", "--catalogue", "policy.toml")
    stack.start_all()


class Caller:
    """A client with one token. Each of its calls has a connection of its own, so that any worker may get it."""

    def __init__(self, stack: PreparedStack, name: str) -> None:
        created = stack.create_client(name, "count")
        form = {"grant_type": "client_credentials"}
        auth = (created["client_id"], created["client_secret"])
        token = httpx2.post(f"{stack.issuer}/token", data=form, auth=auth, trust_env=False).json()["access_token"]
        self.headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
        self.resource = stack.resource

    async def count(self, **arguments: str) -> dict[str, Any]:
        params = {"name": "count", "arguments": arguments}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params}
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
            answer = (await http.post(self.resource, json=body, headers=self.headers)).json()
        result: dict[str, Any] = answer["result"]["structuredContent"]
        return result

    async def wait_until_listed(self) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=60) as http:
            with anyio.fail_after(60):
                # Both workers must know the tools.
                for _ in range(20):
                    while True:
                        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
                        listed = (await http.post(self.resource, json=body, headers=self.headers)).json()
                        if listed["result"]["tools"]:
                            break
                        await anyio.sleep(0.1)


@pytest.mark.anyio
@pytest.mark.parametrize("gateway", [False], indirect=True)
async def test_two_callers_of_a_program_never_meet_whichever_worker_serves_them(gateway: PreparedStack) -> None:
    callers = [Caller(gateway, "alice"), Caller(gateway, "bob")]
    await callers[0].wait_until_listed()
    processes: list[set[int]] = []
    for caller in callers:
        counted = [await caller.count(name=f"call {number}") for number in range(8)]
        assert [each["calls"] for each in counted] == [1, 2, 3, 4, 5, 6, 7, 8]
        processes.append({each["process"] for each in counted})
    assert [len(own) for own in processes] == [1, 1]
    assert processes[0] != processes[1]


@pytest.mark.anyio
@pytest.mark.parametrize("gateway", [True], indirect=True)
async def test_a_hundred_callers_share_a_program_and_each_gets_its_own_answer(gateway: PreparedStack) -> None:
    callers = [Caller(gateway, f"agent {number}") for number in range(5)]
    await callers[0].wait_until_listed()
    answers: list[dict[str, Any]] = []

    async def call(number: int) -> None:
        answer = await callers[number % len(callers)].count(name=f"caller {number}")
        assert answer["name"] == f"caller {number}"
        answers.append(answer)

    async with anyio.create_task_group() as tasks:
        for number in range(100):
            tasks.start_soon(call, number)
    assert len({answer["process"] for answer in answers}) == 1
    assert Counter(answer["calls"] for answer in answers) == Counter(range(1, 101))
    assert len(child_processes(gateway.pid("resourceserver"))) >= 3


@pytest.mark.anyio
async def test_two_callers_of_a_stateful_server_keep_their_sessions_on_both_workers(tmp_path: Path) -> None:
    stack = PreparedStack(tmp_path, settings={**VARIABLES, "RESOURCESERVER_UPSTREAM": "policy.toml"})
    async with sdk_upstream("stateful") as upstream:
        try:
            await anyio.to_thread.run_sync(start, stack, f'url = "{upstream.url}"')
            callers = [await anyio.to_thread.run_sync(Caller, stack, name) for name in ("alice", "bob")]
            await callers[0].wait_until_listed()
            for number in range(1, 9):
                for caller in callers:
                    # The server counts the calls of each of its sessions.
                    assert await caller.count() == {"result": number}
        finally:
            await anyio.to_thread.run_sync(stack.stop)
