"""What a server used: CPU time and memory of its process group (Linux), and the statistics of rounds."""

import os
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

TICK = os.sysconf("SC_CLK_TCK")

_CPUCLOCK_SCHED = 2


def processes(group: int) -> list[int]:
    """Return the ids of the processes in a process group, its leader first."""
    found = [pid for pid, (_, own) in _parents_and_groups().items() if own == group]
    return sorted(found, key=lambda pid: (pid != group, pid))


def started_apart(group: int) -> list[int]:
    """Return the ids of the processes that a process group has started outside of it, with all that they started."""
    running = _parents_and_groups()
    found = {pid for pid, (_, own) in running.items() if own == group}
    within = set(found)
    while started := {pid for pid, (parent, _) in running.items() if parent in found} - found:
        found |= started
    return sorted(found - within)


def runs(pid: int, program: Path) -> bool:
    """Return whether a process was started with a program among its arguments."""
    return str(program) in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")


def _parents_and_groups() -> dict[int, tuple[int, int]]:
    """Return the parent and the process group of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                stat = (entry / "stat").read_text(encoding="ascii", errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue
            # The name in parentheses may contain spaces. Then: state, parent, group.
            _, parent, group, *_ = stat.rpartition(")")[2].split()
            found[int(entry.name)] = int(parent), int(group)
    return found


def cpu_seconds(pid: int) -> float:
    """Return the user and system time of all threads of a process, also of those that have ended.

    The id of a process's CPU clock is that of the GNU C library's clock_getcpuclockid(3). It counts in nanoseconds,
    and /proc/PID/stat in hundredths of a second.
    """
    return time.clock_gettime_ns((~pid << 3) | _CPUCLOCK_SCHED) / 1e9


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def busy_seconds(cpu: int) -> float:
    """Return how long a CPU has not been idle since the machine started."""
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith(f"cpu{cpu} "):
            user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, line.split()[1:])
            return (user + nice + system + irq + softirq) / TICK
    raise ValueError(f"there is no CPU {cpu}")


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds of the processes of a server, and of its CPU, at one moment."""

    seconds: dict[int, float]
    busy: float

    def since(self, earlier: "Usage") -> float:
        """Return the seconds used since another moment. Raises RuntimeError if a process was replaced in between."""
        if self.seconds.keys() != earlier.seconds.keys():
            raise RuntimeError("a process of the server was started or ended during the round")
        return sum(self.seconds.values()) - sum(earlier.seconds.values())


def usage(pids: Iterable[int], cpu: int) -> Usage:
    """Return what processes have used until now. `cpu` is the CPU that they are pinned to."""
    return Usage({pid: cpu_seconds(pid) for pid in pids}, busy_seconds(cpu))


def worker_memory(group: int) -> float:
    """Return the resident memory in MiB of the largest process that serves requests: not of gunicorn's arbiter."""
    leader, *workers = processes(group)
    return max(map(resident_mib, workers or [leader]))


@dataclass(frozen=True, slots=True)
class Round:
    """One round of one server."""

    cpu_us: float
    """CPU time per right response, in microseconds."""
    rps: float
    """Right responses per second."""
    p50_ms: float
    p99_ms: float
    memory_mib: float
    others: float
    """Share of the server's CPU that other processes used: 0 on an idle machine."""
    behind_us: float = 0.0
    """CPU time per right response of the server behind a gateway, in microseconds. It is not in `cpu_us`."""


def median(rounds: Sequence[Round]) -> Round:
    """Return the median of every figure."""
    fields: list[dict[str, Any]] = [asdict(round_) for round_ in rounds]
    return Round(**{name: statistics.median(one[name] for one in fields) for name in fields[0]})


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of the values does not exceed (the nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-len(ordered) * share // 1) - 1)]
