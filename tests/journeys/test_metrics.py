"""Metrics of both servers with two workers each: sums, restarts, crashes, and the separate address."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_stack import child_processes
from support.measured_stack import SERVERS, MeasuredStack, status_of
from support.prepared_stack import PreparedStack
from support.waiting import wait_until


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MeasuredStack]:
    """Both servers. At the end, nothing serves their metrics any more."""
    measured = MeasuredStack(tmp_path_factory.mktemp("measured") / "stack")
    try:
        yield measured
    finally:
        measured.stack.stop()
    assert [status_of(f"http://{bind}/metrics") for bind in measured.binds.values()] == [0, 0]


def token_counts(measured: MeasuredStack) -> tuple[float, float, float]:
    """Return the counted token requests: allowed, refused, and the durations."""
    name = "gatehouse_token_requests_total"
    return (
        measured.total("authserver", name, outcome="allowed"),
        measured.total("authserver", name, outcome="refused"),
        measured.total("authserver", "gatehouse_token_request_duration_seconds_count"),
    )


def call_counts(measured: MeasuredStack) -> tuple[float, float, float]:
    """Return the counted calls: allowed, refused, and the durations."""
    name = "gatehouse_gate_decisions_total"
    return (
        measured.total("resourceserver", name, outcome="allowed"),
        measured.total("resourceserver", name, outcome="refused"),
        measured.total("resourceserver", "mcp_server_operation_duration_seconds_count", mcp_method_name="tools/call"),
    )


def send(measured: MeasuredStack, token: str, count: int) -> None:
    """Send `count` requests to each server that are allowed, and as many that are refused."""
    for _ in range(count):
        assert measured.post_token() == 200
        assert measured.post_token("gths_wrong") == 401
        assert measured.post_mcp(token) == 200
        assert measured.post_mcp() == 401


def require_counts(measured: MeasuredStack, sent: int) -> None:
    """Wait until the counters equal the requests sent: one is counted when its response has left."""
    counts = (sent, sent, 2 * sent)
    wait_until(lambda: token_counts(measured) == call_counts(measured) == counts, 10)


def replace_workers(measured: MeasuredStack, server: str, number: int) -> None:
    """Send a signal that replaces workers, to the server (HUP) or to one worker (KILL), and wait for two new ones."""
    before = measured.workers(server)
    os.kill(measured.stack.pid(server) if number == signal.SIGHUP else before[0], number)
    replaced = set(before) if number == signal.SIGHUP else {before[0]}
    wait_until(lambda: len(now := measured.workers(server)) == 2 and replaced.isdisjoint(now))
    measured.stack.wait_until_ready(server)


def test_counters_equal_the_requests_sent_after_a_restart_and_a_kill(measured: MeasuredStack) -> None:
    token = measured.access_token()
    send(measured, token, 10)
    require_counts(measured, 10)
    sent = 10
    for number in (signal.SIGHUP, signal.SIGKILL):
        for server in SERVERS:
            replace_workers(measured, server, number)
        send(measured, token, 10)
        sent += 10
        require_counts(measured, sent)
    # Gauges are those of the two workers that run.
    wait_until(lambda: measured.total("authserver", "gatehouse_db_pool_size") == 2 * 14)
    written = measured.total("authserver", "gatehouse_audit_written_timestamp_seconds")
    assert measured.total("authserver", "gatehouse_signing_key_rotation_timestamp_seconds") > written > 0
    for name in ("key_set_fetched", "status_lists_fetched", "audit_written"):
        assert measured.total("resourceserver", f"gatehouse_{name}_timestamp_seconds") > 0


@pytest.mark.threat("T-161")
def test_metrics_have_their_own_address_and_process(measured: MeasuredStack) -> None:
    stack = measured.stack
    for server, base in (("authserver", stack.issuer), ("resourceserver", stack.resource.removesuffix("/mcp"))):
        assert status_of(f"{base}/metrics") == 404
        metrics = f"http://{measured.binds[server]}"
        wait_until(lambda metrics=metrics: status_of(f"{metrics}/metrics") == 200)
        assert status_of(f"{metrics}/livez") == 404
        killed = measured.metrics_process(server)
        os.kill(killed, signal.SIGKILL)
        wait_until(lambda metrics=metrics: status_of(f"{metrics}/metrics") == 200)
        assert measured.metrics_process(server) != killed
        assert b"SERVER_" not in Path(f"/proc/{measured.metrics_process(server)}/environ").read_bytes()


@pytest.mark.threat("T-161")
def test_metrics_are_off_by_default(stack: PreparedStack) -> None:
    assert [len(child_processes(stack.pid(server))) for server in SERVERS] == [2, 2]
