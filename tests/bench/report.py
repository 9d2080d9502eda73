"""The results as JSON, and as the tables of docs/performance.md, which are generated from the JSON."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.measuring import median
from bench.row import Outcome, Row

DOCUMENT = Path(__file__).parents[2] / "docs" / "performance.md"
RESULTS = DOCUMENT.with_suffix("") / "results.json"
"""The results that the document shows. Its plots are in the same folder."""

_BETWEEN = re.compile(r"(?<=<!-- results -->\n).*(?=<!-- end of the results -->)", re.DOTALL)

HEADERS = ("server", "CPU us", "requests/s", "p50 ms", "p99 ms", "MiB")


def row_as_json(row: Row, outcome: Outcome) -> dict[str, Any]:
    """Return the results of a row."""
    return {
        "name": row.name,
        "title": row.title,
        "servers": {
            name: {"median": asdict(median(rounds)), "rounds": [asdict(one) for one in rounds]}
            for name, rounds in outcome.rounds.items()
        },
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in outcome.figures],
    }


def failed_as_json(row: Row, reason: str) -> dict[str, Any]:
    """Return a row that could not be measured."""
    return {"name": row.name, "title": row.title, "servers": {}, "figures": [], "failed": reason}


def in_document(result: Mapping[str, Any], plots: Sequence[str]) -> str:
    """Return the document with these results in place of the earlier ones."""
    text = f"\n{circumstances(result['measured'])}\n"
    text += "".join(f"\n![{name}](performance/{name})\n" for name in plots)
    text += f"\n{tables(result['rows'])}\n"
    return _BETWEEN.sub(lambda _: text, DOCUMENT.read_text(encoding="utf-8"))


def circumstances(measured: Mapping[str, Any]) -> str:
    """Return when and with what the results were measured, in Markdown."""
    versions = "".join(f"\n- {name}: {version}" for name, version in measured["peers"].items())
    return (
        f"Measured at {measured['at']} on {measured['machine']}, with {measured['load']}: the median of "
        f"{measured['rounds']} rounds of {measured['seconds']} s, after {measured['warm_up']} s of load. "
        f"Other processes used at most {measured['others']:.0%} of the servers' CPU.\n{versions}"
    )


def tables(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the results of all rows in Markdown."""
    return "\n".join(line for row in rows for line in _row(row)).strip() + "\n"


def _row(row: Mapping[str, Any]) -> Iterator[str]:
    yield from ("", f"### {row['title']}", "")
    if "failed" in row:
        yield f"Not measured: {row['failed']}"
    if row["servers"]:
        servers = ((name, *_figures(server["median"])) for name, server in row["servers"].items())
        yield from _table(HEADERS, servers)
        yield ""
    if row["figures"]:
        yield from _table(("figure", "value", "goal (bound)", "verdict"), map(_figure, row["figures"]))


def _figures(one: Mapping[str, float]) -> Iterator[str]:
    yield f"{one['cpu_us']:.0f}"
    yield f"{one['rps']:.0f}"
    yield f"{one['p50_ms']:.1f}"
    yield f"{one['p99_ms']:.1f}"
    yield f"{one['memory_mib']:.0f}"


def _figure(figure: Mapping[str, Any]) -> tuple[str, ...]:
    target = figure["target"]
    expected = "" if target is None else f"{target['goal']:g} ({target['bound']:g})"
    return figure["label"], f"{figure['value']:.2f} {figure['unit']}", expected, figure["verdict"]


def _table(header: Sequence[str], lines: Iterator[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(header)} |"
    yield f"|{'---|' * len(header)}"
    for line in lines:
        yield f"| {' | '.join(line)} |"
