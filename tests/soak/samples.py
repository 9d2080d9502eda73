"""What the workers of both servers use, and how fast they answer, every few seconds."""

import asyncio
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measuring import busy_seconds, percentile, resident_mib
from local_stack import LocalStack, child_processes
from soak.traffic import Record

EVERY = 10.0
"""Seconds between two samples."""

SERVERS = ("authserver", "resourceserver")


def proportional_mib(pid: int) -> float:
    """Return the memory of a process in MiB, of shared pages only its share (PSS)."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    return 0.0


def open_files(pid: int) -> int:
    """Return the number of open file descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


USES = {"rss_mib": resident_mib, "pss_mib": proportional_mib, "files": open_files}


@dataclass
class Sampler:
    """Samples the workers and the latencies. The lists have one entry for each sample."""

    stack: LocalStack
    record: Record
    at: list[float] = field(default_factory=list)
    """Seconds since the start."""
    busy: list[float] = field(default_factory=list)
    """Share of the machine's CPUs that was used since the last sample."""
    latency: dict[str, dict[str, list[float | None]]] = field(default_factory=dict)
    """Milliseconds by kind of request, p50 and p99; None without a request."""

    def __post_init__(self) -> None:
        self._pids = self._workers()
        self.workers: dict[str, dict[str, list[float]]] = {name: {use: [] for use in USES} for name in self._pids}

    def _workers(self) -> Mapping[str, int]:
        return {
            f"{server} {number}": pid
            for server in SERVERS
            for number, pid in enumerate(sorted(child_processes(self.stack.pid(server))), 1)
        }

    async def run(self, seconds: float) -> None:
        """Sample for this long."""
        started = time.monotonic()
        busy = self._busy()
        for number in range(1, int(seconds / EVERY) + 1):
            await asyncio.sleep(max(0.0, started + number * EVERY - time.monotonic()))
            before, busy = busy, self._busy()
            self.busy.append((busy - before) / EVERY / (os.cpu_count() or 1))
            self.at.append(round(time.monotonic() - started, 1))
            self._sample()

    def _sample(self) -> None:
        if (pids := self._workers()) != self._pids:
            self.record.failures.append(f"workers were replaced: {self._pids}, {pids}")
            self._pids = pids
        for name, pid in self._pids.items():
            for use, read in USES.items():
                self.workers[name][use].append(round(read(pid), 2))
        latencies = self.record.take()
        for kind in latencies.keys() - self.latency.keys():
            missed: list[float | None] = [None] * (len(self.at) - 1)
            self.latency[kind] = {"p50_ms": [*missed], "p99_ms": missed}
        for kind, of_kind in self.latency.items():
            for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                measured: Sequence[float] = latencies.get(kind, ())
                of_kind[name].append(round(percentile(measured, share), 2) if measured else None)

    @staticmethod
    def _busy() -> float:
        return sum(busy_seconds(cpu) for cpu in range(os.cpu_count() or 1))

    def as_json(self) -> dict[str, Any]:
        """Return all samples."""
        latency = {kind: self.latency[kind] for kind in sorted(self.latency)}
        return {
            "at": self.at,
            "busy": [round(share, 3) for share in self.busy],
            "workers": self.workers,
            "latency": latency,
        }
