"""The tables of a soak, and what counts as growth."""

import json
from typing import Any

import pytest
from soak.report import RECORDING, growth, in_document, read, slope, tables

DOCUMENT = RECORDING.parent.with_suffix(".md")


@pytest.fixture
def recording() -> dict[str, Any]:
    """Eight minutes, of which the first two are the warm-up."""
    at = [10.0 * number for number in range(1, 49)]
    flat = {"rss_mib": [80.0] * 48, "pss_mib": [50.0] * 48, "files": [30] * 48}
    return {
        "recorded_at": "2026-01-02",
        "machine": "a",
        "warm_up": 120.0,
        "requests": {"token by key": 480},
        "commands": 9,
        "failures": [],
        "at": at,
        "busy": [0.5] * 48,
        "workers": {"authserver 1": flat},
        "latency": {"token by key": {"p50_ms": [2.0] * 48, "p99_ms": [None, *[second / 60 for second in at[1:]]]}},
    }


def test_a_slope_is_that_of_a_minute_after_the_warm_up() -> None:
    at = [60.0, 120.0, 180.0, 240.0]
    assert slope(at, [90, 10, 12, 14], 120) == pytest.approx(2)
    assert slope(at, [90, 10, None, 14], 120) == pytest.approx(2)
    assert slope(at, [90, 10, None, None], 120) == 0


def test_what_grows_is_named(recording: dict[str, Any]) -> None:
    assert growth(recording) == []
    recording["workers"]["authserver 1"]["rss_mib"] = [80 + 0.2 * number for number in range(48)]
    recording["workers"]["authserver 1"]["files"] = [30 + number // 6 for number in range(48)]
    memory, files = growth(recording)
    assert memory == "authserver 1: rss_mib grows by 1.20 MiB a minute, more than 1"
    assert files.startswith("authserver 1: files grows by 0.99 files")


def test_what_grows_only_in_the_warm_up_is_fine(recording: dict[str, Any]) -> None:
    recording["workers"]["authserver 1"]["rss_mib"] = [*range(11), *[11] * 37]
    assert growth(recording) == []


def test_a_short_soak_is_not_judged(recording: dict[str, Any]) -> None:
    uses = recording["workers"]["authserver 1"]
    recording["at"], uses["rss_mib"] = [10.0, 20.0], [80.0, 99.0]
    assert growth(recording) == []


def test_the_tables_have_sizes_latencies_and_slopes(recording: dict[str, Any]) -> None:
    assert tables(json.loads(json.dumps(recording))).splitlines() == [
        "| worker | RSS MiB | slope | PSS MiB | slope | open files | slope |",
        "|---|---|---|---|---|---|---|",
        "| authserver 1 | 80 | +0.00 | 50 | +0.00 | 30 | +0.00 |",
        "",
        "| request | number | p50 ms | slope | p99 ms | slope |",
        "|---|---|---|---|---|---|",
        "| token by key | 480 | 2.0 | +0.00 | 4.2 | +1.00 |",
    ]


def test_a_recording_replaces_the_earlier_one_in_the_document(recording: dict[str, Any]) -> None:
    written = in_document(DOCUMENT.read_text(encoding="utf-8"), recording)
    assert written.startswith("# Performance\n")
    assert written.count("480 requests and 9 commands") == 1
    assert in_document(written, recording) == written


def test_the_document_shows_exactly_the_recorded_soak() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    recording = read()
    if recording is None:
        assert "<!-- soak -->\n<!-- end of the soak -->" in document
        return
    assert in_document(document, recording) == document, "run: python -m bench --document"
