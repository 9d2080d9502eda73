"""The log line of each request: one line, the same whichever way it is written, and never a reason to fail."""

import errno
import io
import json
import logging
import re
import sys
from collections.abc import Callable
from contextvars import copy_context

import pytest
import structlog
from support.logs import Read, logging_put_back

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service import requests
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.requests import RequestLog, add_to_log, new_request_id
from gatehouse.shared.service.settings import LogFormat

TOKEN = SigningKey.generate("ES256").sign("at+jwt", {"sub": "agent_1"})
JTI = "0123456789ab.15.AAAAAAAAAAAAAAAAAAAAAA"
FORMATS: tuple[LogFormat, ...] = ("json", "console")


@pytest.fixture(autouse=True)
def _frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests.time, "time", lambda: 1_800_000_000.000123)
    monkeypatch.setattr(requests.time, "perf_counter", lambda: 1.5)


def log_request(
    fields: dict[str, str | None], *, method: str = "POST", path: str = "/token", status: int = 200
) -> None:
    request = RequestLog("req_1")
    add_to_log(**fields)
    request.finish(method, path, status)


def count_events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which every event that passes through structlog's processors is appended."""
    events: list[str] = []
    monkeypatch.setattr(requests.log, "info", lambda event, **_: events.append(event), raising=False)
    return events


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"client_id": "agent_1", "jti": JTI}, 200),
        ({"client_id": "https://agents.example.com/~a?b#[1]{2}", "jti": None}, 204),
        ({"client_id": None}, 302),
        ({}, 304),
    ],
    ids=["a token", "a URL as the client_id", "no client_id", "no fields"],
)
def test_a_direct_line_is_the_one_that_structlog_writes(
    read: Read, monkeypatch: pytest.MonkeyPatch, format_: LogFormat, fields: dict[str, str | None], status: int
) -> None:
    configure_logs(format_)
    log_request(fields, status=status)
    by_structlog = _written_by_structlog(read, fields, status)
    assert by_structlog.count("\n") == 1
    events = count_events(monkeypatch)
    log_request(fields, status=status)
    assert (read(), events) == (by_structlog, [])


@pytest.mark.parametrize("format_", FORMATS)
def test_no_character_makes_the_two_ways_differ(read: Read, format_: LogFormat) -> None:
    configure_logs(format_)
    for character in map(chr, range(0x180)):
        log_request({"client_id": f"a{character}b"})
        assert read() == _written_by_structlog(read, {"client_id": f"a{character}b"}, 200)


def _written_by_structlog(read: Read, fields: dict[str, str | None], status: int) -> str:
    read()
    logging.getLogger().addHandler(logging.NullHandler())
    log_request(fields, status=status)
    logging.getLogger().handlers.pop()
    return read()


@pytest.mark.threat("T-106")
@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "client_id",
    [
        # A new one in each process, so it cannot name its test.
        pytest.param(TOKEN, id="token"),
        *(
            pytest.param(value, id=ascii(value))
            for value in (
                "gths_" + "a" * 43,
                "gtrs_" + "a" * 43,
                "Basic YWdlbnQ6aHVudGVyMg==",
                'a", "status": "500',
                "a\\",
                "a b",
                "a\nforged",
                "a\x1b[2J",
                "a\u2028forged",
                "\u00e9",
                "\x7f",
            )
        ),
    ],
)
def test_other_values_pass_through_structlog(
    read: Read, monkeypatch: pytest.MonkeyPatch, format_: LogFormat, client_id: str
) -> None:
    """CWE-117, CWE-532: a client_id in a token can be any text."""
    configure_logs(format_)
    log_request({"client_id": client_id})
    [line] = read().splitlines()
    assert line.isprintable()
    assert not any(secret in line for secret in (TOKEN, "aaaaaaaa", "YWdlbnQ6"))
    if format_ == "json":
        assert json.loads(line)["status"] == 200
    events = count_events(monkeypatch)
    for fields in ({"client_id": client_id}, {"jti": client_id}):
        log_request(fields)
    log_request({}, method=client_id)
    log_request({}, path=client_id)
    assert events == ["request"] * 4


@pytest.mark.parametrize("format_", FORMATS)
def test_refusals_and_reasons_pass_through_structlog(
    read: Read, monkeypatch: pytest.MonkeyPatch, format_: LogFormat
) -> None:
    configure_logs(format_)
    log_request({"reason": f"sent {TOKEN}"}, status=401)
    log_request({"reason": f"sent {TOKEN}"}, status=200)
    refused, allowed = read().splitlines()
    assert "refused" in refused
    assert "allowed" in allowed
    assert all("sent [masked]" in line for line in (refused, allowed))
    events = count_events(monkeypatch)
    for status in (400, 401, 500, 503, 0):
        log_request({}, status=status)
    assert events == ["request"] * 5


@pytest.mark.parametrize(
    ("status", "outcome"), [(200, "allowed"), (304, "allowed"), (404, "refused"), (500, "failed"), (0, "aborted")]
)
def test_the_outcome_follows_from_the_status(read: Read, status: int, outcome: str) -> None:
    configure_logs("json")
    log_request({}, status=status)
    line = json.loads(read())
    assert (line["status"], line["outcome"]) == (status, outcome)


def test_the_other_lines_of_a_request_have_its_fields(read: Read) -> None:
    configure_logs("json")
    request = RequestLog("req_1")
    add_to_log(client_id="agent_1", jti=None)
    logging.getLogger("some.library").error("failed")
    copy_context().run(structlog.stdlib.get_logger("test").warning, "in a thread", client_id="agent_2")
    request.finish("POST", "/token", 200)
    structlog.stdlib.get_logger("test").warning("after it")
    add_to_log(client_id="nobody")
    failed, in_thread, _, after = map(json.loads, read().splitlines())
    assert (failed["request_id"], failed["client_id"], "jti" in failed) == ("req_1", "agent_1", False)
    assert (in_thread["request_id"], in_thread["client_id"]) == ("req_1", "agent_2")
    assert after.keys() == {"event", "level", "timestamp"}


@pytest.mark.parametrize("format_", FORMATS)
def test_the_level_hides_the_line(read: Read, format_: LogFormat) -> None:
    configure_logs(format_, "WARNING")
    log_request({"client_id": "agent_1"})
    log_request({}, status=400)
    assert read() == ""


def test_every_configured_handler_gets_the_line(read: Read, caplog: pytest.LogCaptureFixture) -> None:
    configure_logs("json")
    logging.getLogger().addHandler(caplog.handler)
    log_request({"client_id": "agent_1"})
    assert "agent_1" in read()
    assert [record.msg["client_id"] for record in caplog.records] == ["agent_1"]


def test_a_line_is_one_write(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes write to one stream, and must not mix their lines."""
    stream = _Stream(lambda: None)
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_put_back():
        configure_logs("json")
        log_request({"client_id": "agent_1"})
        log_request({}, status=404)
    assert [text.count("\n") for text in stream.written] == [1, 1]


class _Stream(io.StringIO):
    def __init__(self, fail: Callable[[], object]) -> None:
        super().__init__()
        self._fail = fail
        self.written: list[str] = []

    def write(self, text: str) -> int:
        self._fail()
        self.written.append(text)
        return len(text)


def _raise(error: Exception) -> object:
    raise error


@pytest.mark.parametrize("status", [200, 404])
@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        BrokenPipeError(errno.EPIPE, "Broken pipe"),
        ValueError("I/O operation on closed file."),
    ],
    ids=["disk full", "broken pipe", "closed"],
)
def test_a_line_that_cannot_be_written_fails_no_request(
    monkeypatch: pytest.MonkeyPatch, status: int, error: Exception
) -> None:
    failing = [error, error, error]
    stream = _Stream(lambda: failing and _raise(failing.pop()))
    monkeypatch.setattr(sys, "stderr", stream)
    with logging_put_back():
        configure_logs("json")
        log_request({"client_id": "agent_1"}, status=status)
        failing.clear()
        log_request({"client_id": "agent_2"}, status=status)
    assert "agent_1" not in "".join(stream.written)
    assert "agent_2" in stream.written[-1]


def test_a_log_call_that_fails_reports_its_place_and_none_of_its_values(read: Read) -> None:
    """CWE-532: the standard library would print the message and its arguments, unmasked."""
    configure_logs("json")
    logging.getLogger("some.library").error("%d", TOKEN)
    assert re.fullmatch(r"The log call at .*test_requests\.py:\d+ failed\.\n", read())


def test_request_ids_are_unique_and_in_the_order_of_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index of the audit log depends on the order: see `new_request_id`."""
    times = (1_800_000_000.0, 1_800_000_000.0, 1_800_000_000.001, 1_800_000_001.0, 4_000_000_000.0)
    ids = []
    for now in times:
        monkeypatch.setattr(requests.time, "time", lambda now=now: now)
        ids.append(new_request_id())
    assert all(re.fullmatch("req_[0-9a-f]{24}", one) for one in ids)
    assert ids[0] != ids[1]
    assert ids[1:] == sorted(ids[1:])
