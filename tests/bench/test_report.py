"""The tables of the benchmark, and docs/performance.md, which is generated from its results."""

import json
from typing import Any

import pytest
from bench.measuring import Round
from bench.report import DOCUMENT, RESULTS, in_document, row_as_json, tables
from bench.row import Outcome, Row
from bench.rows import ROWS
from bench.verdicts import Figure, Target

PEER = Round(cpu_us=200, rps=5000, p50_ms=1, p99_ms=4, memory_mib=80, others=0)
OURS = Round(cpu_us=100, rps=9000, p50_ms=0.5, p99_ms=2, memory_mib=90, others=0)


@pytest.fixture
def result() -> dict[str, Any]:
    row = Row("example", "An example", lambda bench: Outcome())
    outcome = Outcome({"ours": [OURS], "peer": [PEER]}, [Figure("ours / peer", 0.5, "x", Target(0.4, 0.6))])
    measured = {
        "at": "2026-01-02",
        "machine": "a",
        "load": "wrk",
        "rounds": 1,
        "seconds": 3,
        "warm_up": 5,
        "others": 0.01,
    }
    return {"measured": {**measured, "peers": {"peer": "1.0"}}, "rows": [row_as_json(row, outcome)]}


def test_a_row_has_its_servers_and_verdicts(result: dict[str, Any]) -> None:
    assert tables(json.loads(json.dumps(result))["rows"]).splitlines() == [
        "### An example",
        "",
        "| server | CPU us | requests/s | p50 ms | p99 ms | MiB |",
        "|---|---|---|---|---|---|",
        "| ours | 100 | 9000 | 0.5 | 2.0 | 90 |",
        "| peer | 200 | 5000 | 1.0 | 4.0 | 80 |",
        "",
        "| figure | value | goal (bound) | verdict |",
        "|---|---|---|---|",
        "| ours / peer | 0.50 x | 0.4 (0.6) | within the bound |",
    ]


def test_a_row_that_failed_says_why() -> None:
    failed = {"title": "An example", "servers": {}, "figures": [], "failed": "peer: 3 wrong responses"}
    assert "Not measured: peer: 3 wrong responses" in tables([failed])


def test_results_replace_the_earlier_ones_in_the_document(result: dict[str, Any]) -> None:
    written = in_document(result, ["cpu.png"])
    assert written.count("| ours | 100 |") == 1
    assert "![cpu.png](performance/cpu.png)" in written
    assert written.startswith("# Performance\n")


def test_the_document_shows_exactly_the_recorded_results() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    if not RESULTS.exists():
        assert "<!-- results -->\n<!-- end of the results -->" in document
        return
    result = json.loads(RESULTS.read_text(encoding="utf-8"))
    plots = [name for name in ("cpu.png", "growth.png") if RESULTS.with_name(name).exists()]
    assert in_document(result, plots) == document, "run: python -m bench --document"


def test_the_document_describes_every_row() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    assert [row.name for row in ROWS if f"`{row.name}`" not in document] == []
