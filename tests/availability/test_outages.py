"""Databases that only read: every answer comes in time, and readiness follows the outage and its end."""

import asyncio
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from local_stack import LocalStack, _status
from support.availability import Stack, Target, http
from support.callers import Caller, Tally, calling

from gatehouse.shared.service.deadline import WAIT_LIMIT

pytestmark = pytest.mark.anyio

OUTAGE = 25.0
"""Seconds. Longer than any wait of a request, so that requests run into their deadline."""

ANSWERS = 100
"""Of each request, before the outage and after it."""

MARGIN = 1.0
"""Seconds that an answer may take on a busy machine in addition to its waits."""

CALLERS = 8
"""Of each request."""

SERVERS = ("authserver", "resourceserver")


def readyz(stack: LocalStack, server: str) -> str:
    return f"{stack.issuer}/readyz" if server == "authserver" else stack.resource.replace("/mcp", "/readyz")


@contextmanager
def locked(file: Path) -> Iterator[None]:
    """Hold the write lock, as a backup or an administrator's transaction does."""
    with closing(sqlite3.connect(file, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield
        holder.execute("ROLLBACK")


@contextmanager
def moved(file: Path) -> Iterator[None]:
    """Move the files of a database away, and put them back."""
    files = list(file.parent.glob(f"{file.name}*"))
    for each in files:
        each.rename(each.with_name(f"moved-{each.name}"))
    yield
    assert not file.exists(), "an empty database would hide the loss"
    for each in files:
        each.with_name(f"moved-{each.name}").rename(each)


async def seconds_until(status: int, url: str) -> float:
    """Return how long readiness took to change, on both workers: 20 answers in a row."""
    started = last = time.monotonic()
    count = 0
    while count < 20:
        if await asyncio.to_thread(_status, url) == status:
            count += 1
        else:
            count, last = 0, time.monotonic()
        assert time.monotonic() - started < 30, f"{url} did not answer {status}"
        # Without a pause, one idle worker could accept all of these connections.
        await asyncio.sleep(0.02)
    return last - started


def requests_of(target: Target) -> dict[str, bytes]:
    """Return requests that wait for the database in different ways."""
    if target.name == "resourceserver":
        foreign = http("POST", target.url, "Authorization: Bearer none", "Content-Type: application/json", body="{}")
        return {"read": target.requests[0], "write": target.writes[0], "refused": foreign}
    form = "Content-Type: application/x-www-form-urlencoded"
    wrong = http("POST", f"{target.url}/token", form, body="grant_type=client_credentials&client_id=agent_nobody")
    return {"token": target.requests[0], "refused": wrong}


@pytest.mark.parametrize("server", SERVERS)
async def test_no_answer_takes_longer_than_the_deadline_while_sqlite_is_locked(stack: Stack, server: str) -> None:
    [target] = [target for target in stack.targets() if target.name == server]
    tallies = {name: Tally() for name in requests_of(target)}
    callers = [
        Caller(target.url, request, tallies[name])
        for name, request in requests_of(target).items()
        for _ in range(CALLERS)
    ]
    ready = readyz(stack.servers, server)
    async with calling(callers):
        await asyncio.gather(*(tally.wait_for_answers(ANSWERS) for tally in tallies.values()))
        with locked(stack.servers.folder / "var" / f"{server}.db"):
            noticed = await seconds_until(503, ready)
            # What is measured is the answers during an outage of this length.
            await asyncio.sleep(OUTAGE - noticed)
        recovered = await seconds_until(200, ready)
        await asyncio.gather(*(tally.wait_for_answers(ANSWERS) for tally in tallies.values()))
    print(
        f"\n{server}, SQLite locked for {OUTAGE:.0f} s: /readyz 503 after {noticed:.1f} s, 200 after {recovered:.1f} s"
    )
    for name, tally in tallies.items():
        print(f"  {name}: {tally.line()}")
        assert max(tally.seconds) < WAIT_LIMIT + MARGIN
        assert set(tally.failures) <= {"status 503", "status 401"}


@pytest.mark.parametrize("server", SERVERS)
async def test_readiness_follows_a_database_file_that_is_moved_away(stack: Stack, server: str) -> None:
    """No request is sent."""
    ready = readyz(stack.servers, server)
    await seconds_until(200, ready)
    with moved(stack.servers.folder / "var" / f"{server}.db"):
        noticed = await seconds_until(503, ready)
    recovered = await seconds_until(200, ready)
    print(f"\n{server}, SQLite file moved: /readyz 503 after {noticed:.1f} s, 200 after {recovered:.1f} s")
