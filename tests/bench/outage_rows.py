"""A row about an outage: how fast a server answers other requests while its database is locked."""

import asyncio
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path

from bench import assertions
from bench.call_rows import Caller, call_request
from bench.load import CONNECTIONS, get
from bench.measuring import percentile
from bench.row import Bench, Outcome
from bench.servers import SCOPE
from bench.verdicts import Figure, Target
from support import callers
from support.connections import Connections

HELD = 3.0
"""Seconds that the lock is held at most. A request waits no longer than 5 s, and then answers that it could not."""

PAUSE = 0.005
"""Seconds between two requests of /livez."""

LIVEZ = Target(20, 100)
"""Milliseconds. SQLite waits for a lock in pauses of up to 100 ms: an event loop that waited would exceed the bound."""


def locked_database(bench: Bench) -> Outcome:
    """p99 of /livez while another process holds the write lock, and 16 requests to the same worker wait for it."""
    ours = bench.installation("authserver", "resourceserver")
    key = bench.folder / "bench.pem"
    by_key = ours.create_client("bench-key", SCOPE, "--generate-key", str(key))
    caller = Caller.create(ours)

    def token_requests() -> list[bytes]:
        made = assertions.requests(f"{ours.issuer}/token", ours.issuer, by_key["client_id"], key, CONNECTIONS)
        return list(islice(made, CONNECTIONS))

    def calls() -> list[bytes]:
        [token] = ours.tokens(caller.client)
        names = [f"locked-{time.monotonic_ns()}-{number}" for number in range(CONNECTIONS)]
        return [
            call_request(ours.resource, token, "create_environment", "2026-07-28", {"name": name}) for name in names
        ]

    outcome = Outcome()
    for server, url, requests in (
        ("authserver", ours.issuer, token_requests),
        ("resourceserver", ours.resource, calls),
    ):
        file = ours.folder / "var" / f"{server}.db"
        idle, locked = asyncio.run(_run_rounds(url, file, requests, bench))
        for state, latencies, target in (("idle", idle, None), ("locked", locked, LIVEZ)):
            bench.progress(f"{server}, {state}: {len(latencies)} requests of /livez, slowest {max(latencies):.1f} ms")
            figure = Figure(f"{server}, database {state}, p99 of /livez", percentile(latencies, 0.99), "ms", target)
            outcome.figures.append(figure)
    return outcome


async def _run_rounds(
    url: str, file: Path, requests: Callable[[], Sequence[bytes]], bench: Bench
) -> tuple[list[float], list[float]]:
    """Return the milliseconds of /livez while the server is idle, and while requests wait for the write lock."""
    idle: list[float] = []
    locked: list[float] = []
    for _ in range(bench.schedule.rounds):
        idle += await _probe(url, min(bench.schedule.seconds, HELD))
        tally = callers.Tally()
        waiting = [callers.Caller(url, request, tally) for request in requests()]
        with closing(sqlite3.connect(file, isolation_level=None)) as holder:
            # The callers begin at the next wait of this task, when the lock is held.
            async with callers.calling(waiting):
                holder.execute("BEGIN IMMEDIATE")
                locked += await _probe(url, min(bench.schedule.seconds, HELD))
                answered = len(tally.seconds) + len(tally.failures)
                holder.execute("ROLLBACK")
        if answered:
            raise RuntimeError(f"{answered} requests did not wait for the lock: {tally.failures[:3]}")
    return idle, locked


async def _probe(url: str, seconds: float) -> list[float]:
    """Request /livez for some seconds, one request after the other. Return the milliseconds of each."""
    connections = Connections(url)
    request, latencies, until = get(f"{url.removesuffix('/mcp')}/livez", {}), [], time.perf_counter() + seconds
    while time.perf_counter() < until:
        answer = await connections.exchange(request)
        if answer.status != 200:
            raise RuntimeError(f"/livez answered {answer.status}")
        latencies.append(answer.milliseconds)
        await asyncio.sleep(PAUSE)
    connections.close()
    return latencies
