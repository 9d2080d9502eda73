"""Ten minutes of mixed load: every answer is the right one, and no worker's memory or number of open files grows.

Agents request tokens and call tools, some requests must be refused, and an admin rotates, revokes and disables all the
time. Latency is recorded and not judged. SOAK_SECONDS shortens it, SOAK_RATE=0.5 halves the load for a slow machine,
and SOAK_OUTPUT names a file for the recording.
"""

import asyncio
import datetime as dt
import json
import os
import platform
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from bench.call_rows import call_request, result_of
from bench.contest import exchange
from local_stack import LocalStack
from soak.busy_admin import BusyAdmin
from soak.report import WARM_UP, circumstances, growth, tables
from soak.samples import Sampler
from soak.traffic import Agent, Traffic
from support.limits import VARIABLES

pytestmark = [pytest.mark.soak, pytest.mark.anyio]

SECONDS = float(os.environ.get("SOAK_SECONDS", "600"))
RATE = float(os.environ.get("SOAK_RATE", "1"))

WRITER = "env:read env:write"


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[LocalStack]:
    """Running servers with default settings but raised limits, and two workers each."""
    running = LocalStack(tmp_path / "stack", settings=VARIABLES)
    running.init()
    try:
        running.start_all()
        yield running
    finally:
        running.stop()


@pytest.fixture
def traffic(stack: LocalStack) -> Traffic:
    """Five agents that call tools, by secret and by key, and those that are refused."""
    workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "soak")["workspace_id"]
    claim = ("--claim", f"workspace_id={workspace}")
    by_secret = [Agent.create(stack, f"secret-{number}", WRITER, *claim) for number in range(3)]
    by_key = [
        Agent.create(stack, f"key-{number}", WRITER, *claim, "--generate-key", f"key-{number}.pem")
        for number in range(2)
    ]
    made = stack.run_json("authserver", "resource", "credential", "create", stack.resource)
    return Traffic(
        stack,
        by_secret,
        by_key,
        reader=Agent.create(stack, "reader", "env:read", *claim),
        revoker=Agent.create(stack, "revoker", WRITER, *claim),
        resource_credential={"client_id": made["credential_id"], "client_secret": made["secret"]},
        environment_id=create_environment(stack, by_secret[0]),
        rate=RATE,
    )


def create_environment(stack: LocalStack, agent: Agent) -> str:
    """Create the environment that is read and changed."""
    status, body = exchange(stack.issuer, agent.token_request(stack.issuer))
    assert status == 200, body
    token = json.loads(body)["access_token"]
    request = call_request(stack.resource, token, "create_environment", "2026-07-28", {"name": "soak"})
    created: str = result_of(exchange(stack.resource, request)[1])["environment_id"]
    return created


async def test_mixed_load_gets_the_right_answers_and_nothing_grows(stack: LocalStack, traffic: Traffic) -> None:
    disabled = await asyncio.to_thread(Agent.create, stack, "disabled", WRITER)
    admin, sampler = BusyAdmin(traffic, disabled), Sampler(stack, traffic.record)
    tasks = [asyncio.create_task(work) for work in (sampler.run(SECONDS), traffic.run(), admin.run())]
    # The traffic and the admin end only by an error, which is raised below.
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    recording = recorded(traffic, admin, sampler)
    print(f"\n{circumstances(recording)}\n\n{tables(recording)}", flush=True)
    write(recording)
    assert [result for result in results if isinstance(result, Exception)] == []
    assert traffic.record.failures == []
    assert growth(recording) == []


def recorded(traffic: Traffic, admin: BusyAdmin, sampler: Sampler) -> dict[str, Any]:
    """Return the recording as JSON."""
    return {
        "recorded_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        "warm_up": min(WARM_UP, SECONDS / 3),
        "requests": dict(sorted(traffic.record.number.items())),
        "commands": admin.commands,
        "failures": traffic.record.failures,
        **sampler.as_json(),
    }


def write(recording: dict[str, Any]) -> None:
    """Write a recording to the file that SOAK_OUTPUT names."""
    if output := os.environ.get("SOAK_OUTPUT"):
        Path(output).parent.mkdir(parents=True, exist_ok=True)
        Path(output).write_text(json.dumps(recording, indent=1) + "\n", encoding="utf-8")
