"""The recording of a soak as the tables of docs/performance.md, and whether anything grew."""

import json
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

RECORDING = Path(__file__).parents[2] / "docs" / "performance" / "soak.json"
"""The recording that the document shows. Its plot is in the same folder."""

WARM_UP = 120.0
"""Seconds in which the caches fill. The largest is that of 4,096 verified tokens, and 46 tokens a second are issued."""

MIN_JUDGED = 300.0
"""Seconds of the shortest soak whose memory and files are judged. A shorter one only checks the responses."""

MAX_MEMORY_GROWTH = 1.0
"""MiB a minute by which the memory of a worker may grow after the warm-up. At 80 requests a second for each worker,
that is 200 bytes a request: less than a leaked request would occupy."""

MAX_FILE_GROWTH = 0.5
"""Files a minute by which the open files of a worker may grow. A leak at each poll of the status lists would be 12."""

_BETWEEN = re.compile(r"(?<=<!-- soak -->\n).*(?=<!-- end of the soak -->)", re.DOTALL)

Recording = Mapping[str, Any]


def slope(at: Sequence[float], values: Sequence[float | None], warm_up: float) -> float:
    """Return the growth of values per minute after the warm-up (linear regression). 0 with fewer than two values."""
    points = [(second / 60, value) for second, value in zip(at, values, strict=True) if value is not None]
    later = [point for point in points if point[0] >= warm_up / 60]
    return statistics.linear_regression(*zip(*later, strict=True)).slope if len(later) > 1 else 0.0


def growth(recording: Recording) -> list[str]:
    """Return what grew too much; nothing for a soak that was too short to judge."""
    if recording["at"][-1] < MIN_JUDGED:
        return []
    bounds = {
        "rss_mib": (MAX_MEMORY_GROWTH, "MiB"),
        "pss_mib": (MAX_MEMORY_GROWTH, "MiB"),
        "files": (MAX_FILE_GROWTH, "files"),
    }
    return [
        f"{worker}: {use} grows by {grown:.2f} {unit} a minute, more than {most:g}"
        for worker, uses in recording["workers"].items()
        for use, (most, unit) in bounds.items()
        if (grown := slope(recording["at"], uses[use], recording["warm_up"])) > most
    ]


def tables(recording: Recording) -> str:
    """Return the memory, files and latencies in Markdown."""
    return "\n".join([*_workers(recording), "", *_latencies(recording)]) + "\n"


def _workers(recording: Recording) -> Iterator[str]:
    yield "| worker | RSS MiB | slope | PSS MiB | slope | open files | slope |"
    yield "|---|---|---|---|---|---|---|"
    for worker, uses in recording["workers"].items():
        cells = (
            f"{uses[use][-1]:.0f} | {slope(recording['at'], uses[use], recording['warm_up']):+.2f}"
            for use in ("rss_mib", "pss_mib", "files")
        )
        yield f"| {worker} | {' | '.join(cells)} |"


def _latencies(recording: Recording) -> Iterator[str]:
    yield "| request | number | p50 ms | slope | p99 ms | slope |"
    yield "|---|---|---|---|---|---|"
    for kind, latency in recording["latency"].items():
        cells = (
            f"{statistics.median(value for value in values if value is not None):.1f}"
            f" | {slope(recording['at'], values, recording['warm_up']):+.2f}"
            for values in (latency["p50_ms"], latency["p99_ms"])
        )
        yield f"| {kind} | {recording['requests'][kind]} | {' | '.join(cells)} |"


def circumstances(recording: Recording) -> str:
    """Return when, where and for how long the soak ran, and its load, as one paragraph of Markdown."""
    return (
        f"Recorded at {recording['recorded_at']} on {recording['machine']}: {recording['at'][-1] / 60:.1f} minutes, "
        f"{sum(recording['requests'].values())} requests and {recording['commands']} commands, two workers each, "
        f"{len(recording['failures'])} unexpected answers; the CPUs were busy for "
        f"{statistics.mean(recording['busy']):.0%} of the time. Sizes are those at the end. Latencies are medians of "
        f"the values of {len(recording['at'])} intervals of 10 s. Slopes are a minute, after the warm-up of "
        f"{recording['warm_up']:.0f} s."
    )


def in_document(text: str, recording: Recording) -> str:
    """Return the text of docs/performance.md with this recording in place of the earlier one."""
    section = f"\n{circumstances(recording)}\n\n![soak.png](performance/soak.png)\n\n{tables(recording)}\n"
    return _BETWEEN.sub(lambda _: section, text)


def read() -> Recording | None:
    """Return the recording that the document shows, if there is one."""
    if not RECORDING.exists():
        return None
    recording: Recording = json.loads(RECORDING.read_text(encoding="utf-8"))
    return recording
