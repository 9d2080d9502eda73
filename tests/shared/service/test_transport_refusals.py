"""What is answered and recorded for a request that no application sees."""

import json

import pytest
from support.clock import FakeClock
from support.worker import Events

from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable
from gatehouse.shared.service.requests import SECURITY_HEADERS
from gatehouse.shared.service.transport_refusals import RECORDED_PER_SECOND, TransportRefusal, TransportRefusals


def refusal(number: int = 0) -> TransportRefusal:
    return TransportRefusal(400, "InvalidHeader", f"req_{number}")


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (400, b"HTTP/1.1 400 Bad Request"),
        (408, b"HTTP/1.1 408 Request Timeout"),
        (431, b"HTTP/1.1 431 Request Header Fields Too Large"),
        (500, b"HTTP/1.1 500 Internal Server Error"),
        (501, b"HTTP/1.1 501 Not Implemented"),
    ],
)
def test_a_refusal_has_a_constant_response(status: int, line: bytes) -> None:
    header, _, body = TransportRefusal(status, "private", "req_1").response().partition(b"\r\n\r\n")
    first, *fields = header.split(b"\r\n")
    headers = dict(field.decode().split(": ") for field in fields)
    assert first == line
    assert headers.items() >= {**SECURITY_HEADERS, "X-Request-Id": "req_1", "Connection": "close"}.items()
    assert int(headers["Content-Length"]) == len(body)
    answer = json.loads(body)
    assert answer["error"] == (
        "server_error" if status == 500 else "invalid_request" if status < 500 else answer["error"]
    )
    assert answer["request_id"] == "req_1"
    assert "private" not in str(answer)


def test_a_refusal_is_recorded_and_logged(capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture) -> None:
    events = Events()
    TransportRefusals(events, FakeClock()).record(refusal())
    assert events.recorded == [
        AuditEvent(
            AuditAction.HTTP_REQUEST,
            "refused",
            object="(unread)",
            request_id="req_0",
            reason="InvalidHeader",
            detail={"status": 400},
        )
    ]
    assert "req_0" in capsys.readouterr().out + caplog.text


@pytest.mark.threat("T-135")
def test_a_flood_is_counted_in_one_event_each_second() -> None:
    events, clock = Events(), FakeClock()
    refusals = TransportRefusals(events, clock)
    for number in range(1000):
        refusals.record(refusal(number))
    refusals.flush()
    assert len(events.recorded) == RECORDED_PER_SECOND
    clock.advance(1)
    refusals.flush()
    assert events.recorded[RECORDED_PER_SECOND].detail == {"suppressed": 1000 - RECORDED_PER_SECOND}
    refusals.record(refusal())
    clock.advance(1)
    refusals.flush()
    assert len(events.recorded) == RECORDED_PER_SECOND + 2


def test_an_unavailable_audit_log_leaves_a_log_line(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Unavailable:
        def record(self, event: AuditEvent) -> None:
            raise AuditUnavailable("the audit queue is full or closed")

    TransportRefusals(Unavailable()).record(refusal())
    assert "a refusal cannot be recorded" in capsys.readouterr().out + caplog.text
