"""The time series of a process: what a label can hold, what is counted, and that nothing is without the setting."""

import subprocess
import sys

import pytest
from support.clock import FakeClock

from gatehouse.shared.service.metrics import (
    AUDIT_FAILURES,
    AUDIT_QUEUE,
    AUDIT_WRITTEN,
    OTHER,
    POOL_IN_USE,
    POOL_SIZE,
    UNCOUNTED,
    Meter,
    Metric,
    ServerMetrics,
    stamp,
)

CALLS = Metric("counter", "calls_total", "Calls.", {"tool": (), "status": (200, 403)})
RESULTS = Metric("counter", "results_total", "Results.", {"result": ("hit", "miss")})
DURATION = Metric("histogram", "duration_seconds", "Durations.", {"outcome": ("allowed",)}, buckets=(0.1, 1))


def value(meter: Meter | ServerMetrics, name: str, **labels: str) -> float | None:
    assert meter.registry is not None
    return meter.registry.get_sample_value(name, labels)


@pytest.mark.threat("T-160")
def test_a_value_outside_of_its_table_counts_as_other() -> None:
    meter = Meter(enabled=True)
    calls = meter.counters(CALLS, tool=["whoami"])
    calls["whoami", 200].inc()
    for sent in ("gths_0123456789", 'x"} 1\ninjected_total 5', "whoami "):
        calls[sent, 404].inc()
    calls["", 403].inc()
    assert value(meter, "calls_total", tool="whoami", status="200") == 1
    assert value(meter, "calls_total", tool=OTHER, status=OTHER) == 3
    assert value(meter, "calls_total", tool="", status="403") == 1


@pytest.mark.threat("T-160")
def test_values_of_callers_are_not_remembered() -> None:
    calls = Meter(enabled=False).counters(CALLS, tool=["whoami"])
    for number in range(100):
        calls[f"tool-{number}", 200].inc()
    assert calls.keys() == {(OTHER, 200)}


def test_the_time_series_of_a_metric_with_one_label_exist_from_the_start() -> None:
    meter = Meter(enabled=True)
    results = meter.counters(RESULTS)
    assert [value(meter, "results_total", result=result) for result in ("hit", "miss")] == [0, 0]
    results[("miss",)].inc()
    assert value(meter, "results_total", result="miss") == 1


def test_a_histogram_counts_durations_in_its_buckets() -> None:
    meter = Meter(enabled=True)
    durations = meter.histograms(DURATION)
    for seconds in (0.05, 0.5, 5):
        durations[("allowed",)].observe(seconds)
    counts = [value(meter, "duration_seconds_bucket", outcome="allowed", le=le) for le in ("0.1", "1.0", "+Inf")]
    assert counts == [1, 2, 3]


def test_without_the_setting_the_same_calls_count_nothing() -> None:
    meter = Meter(enabled=False)
    meter.counters(CALLS, tool=["whoami"])["whoami", 200].inc()
    meter.histograms(DURATION)[("allowed",)].observe(1)
    meter.gauge(AUDIT_QUEUE).set(1)
    assert meter.registry is None
    assert meter.counter(AUDIT_FAILURES) is UNCOUNTED


@pytest.mark.parametrize("program", ["authserver", "resourceserver"])
def test_a_server_without_metrics_does_not_import_the_library(program: str) -> None:
    code = f"import sys, gatehouse.{program}.cli.serve; print([name for name in sys.modules if 'prometheus' in name])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_the_audit_writer_reports_its_writes_its_queue_and_the_connections() -> None:
    meter, clock = Meter(enabled=True), FakeClock()
    metrics = ServerMetrics(meter, "")
    report = metrics.report_writes(clock, lambda: (2, 8), lambda: (1, 1))
    report(True, 5)
    written = clock()
    clock.advance(60)
    report(False, 7)
    assert value(metrics, AUDIT_WRITTEN.name) == written
    assert value(metrics, AUDIT_FAILURES.name) == 1
    assert value(metrics, AUDIT_QUEUE.name) == 7
    assert (value(metrics, POOL_IN_USE.name), value(metrics, POOL_SIZE.name)) == (3, 9)


def test_only_named_clients_have_a_label() -> None:
    metrics = ServerMetrics(Meter(enabled=False), "agent_a  agent_b")
    assert [metrics.clients.get(actor, "") for actor in ("agent_a", "agent_c", None)] == ["agent_a", "", ""]


def test_a_stamp_is_the_time_at_which_it_is_set() -> None:
    meter, clock = Meter(enabled=True), FakeClock()
    set_now = stamp(meter.gauge(AUDIT_WRITTEN), clock)
    clock.advance(10)
    set_now()
    assert value(meter, AUDIT_WRITTEN.name) == clock()
