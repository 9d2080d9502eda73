"""The plots of docs/performance.md: CPU time per request of every server, and how it grows."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

COMPARED = ("token-secret", "token-jwt", "whoami-2026", "whoami-2025", "list-environments")
GROWTH = ("growth-clients", "growth-token-audit", "growth-10m", "growth-call-audit", "token-clients", "whoami-tokens")

_OURS, _OTHERS = "#1f6f8b", "#b8bfc6"

Rows = Sequence[Mapping[str, Any]]


def draw(rows: Rows, folder: Path) -> list[Path]:
    """Draw the measured rows into PNG files, and return them: a file for each plot that has rows."""
    drawn = []
    for name, chosen in (("cpu.png", COMPARED), ("growth.png", GROWTH)):
        found = [row for row in rows if row["name"] in chosen and row["servers"]]
        if found:
            drawn.append(folder / name)
            _bars(found, drawn[-1])
    return drawn


def _bars(rows: Rows, file: Path) -> None:
    heights = [len(row["servers"]) + 1 for row in rows]
    figure = Figure(figsize=(9, 0.32 * sum(heights) + 0.5), layout="constrained")
    axes = figure.subplots(len(rows), 1, squeeze=False, height_ratios=heights)
    for row, [one] in zip(rows, axes, strict=True):
        _panel(row, one)
    figure.supxlabel("CPU per request, microseconds", fontsize=9)
    figure.savefig(file, dpi=120)


def _panel(row: Mapping[str, Any], axes: Axes) -> None:
    """Draw the servers of a row as bars, the first on top, with the range of their rounds."""
    names = list(row["servers"])
    values = [server["median"]["cpu_us"] for server in row["servers"].values()]
    rounds = [[one["cpu_us"] for one in server["rounds"]] for server in row["servers"].values()]
    ranges = [
        [value - min(measured) for value, measured in zip(values, rounds, strict=True)],
        [max(measured) - value for value, measured in zip(values, rounds, strict=True)],
    ]
    bars = axes.barh(names, values, xerr=ranges, color=[_OURS, *[_OTHERS] * (len(names) - 1)], ecolor="#444444")
    axes.bar_label(bars, [f" {value:.0f}" for value in values], padding=8)
    axes.invert_yaxis()
    axes.set_title(row["title"].replace("`", ""), loc="left", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.12)
