"""The arithmetic of the benchmark: percentiles, CPU time, ratios and verdicts. No test here measures a server."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from bench.measuring import Round, Usage, cpu_seconds, median, percentile, processes, runs, started_apart, worker_memory
from bench.verdicts import P99, Figure, Target, ratios


def round_of(cpu_us: float, p99_ms: float = 1.0) -> Round:
    return Round(cpu_us=cpu_us, rps=1.0, p50_ms=1.0, p99_ms=p99_ms, memory_mib=1.0, others=0.0)


@pytest.fixture
def group() -> Iterator[int]:
    """A process group with a leader and one child, which wait."""
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as leader:
        assert leader.stdout is not None
        leader.stdout.readline()
        yield leader.pid
        leader.communicate(b"\n")


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0, 1.0, 2.0], 0.5, 2.0),
        (list(range(1, 101)), 0.99, 99),
        (list(range(1, 102)), 0.99, 100),
        ([7.0], 0.99, 7.0),
    ],
)
def test_a_percentile_is_the_nearest_rank(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_every_figure_of_the_rounds_has_its_own_median() -> None:
    found = median([round_of(1, 9), round_of(3, 7), round_of(2, 8)])
    assert (found.cpu_us, found.p99_ms) == (2, 8)


def test_cpu_time_counts_threads_that_have_ended() -> None:
    before = cpu_seconds(os.getpid())
    used: list[float] = []

    def work() -> None:
        sum(range(200_000))
        used.append(time.thread_time())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert cpu_seconds(os.getpid()) - before >= used[0] > 0


def test_a_group_has_its_leader_first(group: int) -> None:
    found = processes(group)
    assert found[0] == group
    assert len(found) == 2
    assert worker_memory(group) > 0


def test_a_process_in_a_group_of_its_own_is_told_apart(group: int) -> None:
    own = os.getpgid(0)
    found = started_apart(own)
    assert set(processes(group)) <= set(found)
    assert not set(processes(own)) & set(found)
    assert runs(group, Path(sys.executable))
    assert not runs(group, Path(__file__))


def test_a_process_that_was_replaced_fails_the_round() -> None:
    earlier = Usage({1: 1.0, 2: 1.0}, 0.0)
    assert Usage({1: 2.0, 2: 3.0}, 0.0).since(earlier) == 3.0
    with pytest.raises(RuntimeError, match="started or ended"):
        Usage({1: 2.0, 3: 3.0}, 0.0).since(earlier)


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [
        (0.95, Target(0.95, 1.2), "goal met"),
        (1.2, Target(0.95, 1.2), "within the bound"),
        (1.21, Target(0.95, 1.2), "MISSED"),
        (9.0, None, "reported"),
    ],
)
def test_a_figure_is_judged_by_its_goal_and_bound(value: float, target: Target | None, verdict: str) -> None:
    assert Figure("any", value, "x", target).verdict == verdict


def test_ratios_compare_the_first_with_every_other() -> None:
    figures = {"ours": round_of(100, 10), "peer": round_of(200, 20), "other": round_of(50, 5)}
    cpu, tail, other_cpu, other_tail = ratios(figures, {"peer": Target(0.4, 0.6)}, P99)
    assert (cpu.value, cpu.verdict) == (0.5, "within the bound")
    assert (tail.value, tail.verdict) == (0.5, "goal met")
    assert (other_cpu.value, other_cpu.verdict, other_tail.verdict) == (2.0, "reported", "reported")
