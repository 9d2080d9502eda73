"""The plot of a soak: memory, files and latency over time."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from soak.report import Recording

_SHOWN = ("token by secret", "token by key", "whoami, 2026-07-28", "whoami, 2025-11-25", "read, 2026-07-28", "write")
"""The latencies of the plot; the table has all."""


def draw(recording: Recording, file: Path) -> None:
    """Draw a recording into a PNG file."""
    figure = Figure(figsize=(9, 10), layout="constrained")
    memory, files, median, tail = figure.subplots(4, 1, sharex=True)
    minutes = [second / 60 for second in recording["at"]]
    for worker, uses in recording["workers"].items():
        memory.plot(minutes, uses["rss_mib"], label=worker)
        files.plot(minutes, uses["files"], label=worker)
    for kind in _SHOWN:
        if kind in recording["latency"]:
            for axes, name in ((median, "p50_ms"), (tail, "p99_ms")):
                axes.plot(minutes, [value or float("nan") for value in recording["latency"][kind][name]], label=kind)
    titles = ("resident memory, MiB", "open files", "p50, ms", "p99, ms")
    for axes, title in zip((memory, files, median, tail), titles, strict=True):
        _finish(axes, title, recording["warm_up"] / 60)
    tail.set_xlabel("minutes; the warm-up is grey", fontsize=9)
    figure.savefig(file, dpi=120)


def _finish(axes: Axes, title: str, warm_up: float) -> None:
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_ylim(bottom=0)
    axes.axvspan(0, warm_up, color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=7, ncols=3, frameon=False)
