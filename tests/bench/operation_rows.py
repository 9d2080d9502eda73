"""Rows without a peer: starting, commands, memory, and how soon an audit event is visible."""

import os
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from bench.call_rows import Caller
from bench.contest import run_contest
from bench.measuring import percentile
from bench.row import Bench, Outcome
from bench.servers import SCOPE, Stack, pinned
from bench.token_rows import by_secret
from bench.verdicts import Figure, Target
from local_stack import BIN

STARTS = 5


def starting(bench: Bench) -> Outcome:
    """From the start of each server until /readyz answers 200, and the CPU time of short commands."""
    ours = bench.installation("authserver", "resourceserver")
    ours.create_client("bench", SCOPE)
    figures = [
        Figure("authserver, start to ready", _start(ours, "authserver"), "s", Target(1.0, 1.0)),
        Figure("resourceserver, start to ready", _start(ours, "resourceserver"), "s", Target(1.5, 1.5)),
    ]
    for arguments, limit in (
        (("authserver", "--version"), 0.25),
        (("resourceserver", "--version"), 0.25),
        (("authserver", "client", "list"), 0.7),
    ):
        seconds = statistics.median(_cpu_of(ours, *arguments) for _ in range(STARTS))
        figures.append(Figure(f"CPU of {' '.join(arguments)}", seconds, "s", Target(limit, limit)))
    return Outcome(figures=figures)


def _start(ours: Stack, server: str) -> float:
    """Return the median of several starts, in seconds."""
    seconds = []
    for _ in range(STARTS):
        ours.stop_one(server)
        started = time.perf_counter()
        ours.start(server)
        ours.wait_until_ready(server)
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


def _cpu_of(ours: Stack, *arguments: str) -> float:
    """Return the CPU seconds of a command, on the CPU of the servers."""
    process = subprocess.Popen(
        pinned([str(BIN / arguments[0]), *arguments[1:]]),
        cwd=ours.folder,
        env=ours.environment,
        stdout=subprocess.DEVNULL,
    )
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: exit {process.returncode}")
    return used.ru_utime + used.ru_stime


def audit_delay(bench: Bench) -> Outcome:
    """How long an event of an allowed request is missing from the audit log, under full load."""
    ours = bench.installation("authserver", "resourceserver")
    tokens = by_secret("authserver", ours.authserver, ours.create_client("bench-token", SCOPE))
    calls = Caller.create(ours).calls("resourceserver", ours.resourceserver, "2026-07-28")
    outcome = Outcome()
    for contestant, action in ((tokens, "token.issue"), (calls, "tool.call")):
        watch = Watch(ours.folder / "var" / f"{contestant.name}.db", action)
        with watch.watching():
            outcome.rounds |= run_contest([contestant], bench.schedule, bench.folder / "requests", bench.progress)
        delays = watch.delays
        bench.progress(f"{len(delays)} events of {action}")
        for label, share, target in (("p50", 0.5, None), ("p99", 0.99, Target(200, 200))):
            figure = Figure(f"{action}, delay of the audit event, {label}", percentile(delays, share), "ms", target)
            outcome.figures.append(figure)
    return outcome


class Watch:
    """Notes how long after its time each event of an action becomes visible to another process."""

    _PRECISION = 0.005
    """Seconds between two looks: SQLite announces no commit to another process."""

    def __init__(self, file: Path, action: str) -> None:
        self._file = file
        self._action = action
        self._ended = threading.Event()
        self.delays: list[float] = []
        """Milliseconds."""

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch until the block ends."""
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _run(self) -> None:
        query = "SELECT id, time FROM audit_event WHERE id > ? AND action = ? ORDER BY id"
        with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as reader:
            last: int = reader.execute("SELECT coalesce(max(id), 0) FROM audit_event").fetchone()[0]
            while not self._ended.wait(self._PRECISION):
                rows = reader.execute(query, (last, self._action)).fetchall()
                now = time.time() * 1000
                last = rows[-1][0] if rows else last
                self.delays += (now - recorded for _, recorded in rows)
