"""What both servers do for every request: its id, the headers and texts of its response, and its log line.

All log lines of one request share its fields. The values of most requests are plain identifiers, which no processor
would change. If the request was allowed, its line is assembled and written directly, in the configured format. All
other lines pass through structlog's processors.
"""

import logging
import os
import re
import time
from collections.abc import Mapping
from contextvars import ContextVar
from functools import lru_cache
from typing import Any, Final, Literal, TextIO

import structlog
from structlog.typing import EventDict

from gatehouse.shared.protocol.redaction import mask
from gatehouse.shared.service.settings import LogFormat

SECURITY_HEADERS: Final = {
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
}
"""No response is meant for a browser to interpret."""

UNAVAILABLE: Final = "The server cannot process this request now. Try again in a few seconds."
"""The public text of every refusal that another attempt can get past, such as an outage of the database."""

RETRY_AFTER: Final = {"Retry-After": "2"}
"""Goes with UNAVAILABLE over HTTP (RFC 9110 10.2.3)."""

REQUEST_ID_HEADER: Final = "X-Request-Id"
"""Finds a refused request in the log and the audit log."""

UNKNOWN_PATH: Final = "(other)"
"""Stands in logs for a path that the server does not have, which may contain credentials."""

_DIRECT: Final = frozenset({"request_id", "client_id", "jti"})
"""The fields that a line written directly may have. Others, such as `reason`, may contain what a caller chose."""

_PLAIN = re.compile(r"[!#-&(-<>-\[\]-~]*")
"""Printable ASCII without spaces, quotes, equals signs and backslashes: neither format changes it."""

_current: ContextVar[dict[str, str | None] | None] = ContextVar("request_log", default=None)

_logger = logging.getLogger(__name__)
log = structlog.stdlib.get_logger(__name__)


def raw_headers(headers: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """Return headers as ASGI has them."""
    return [_raw_header(name, value) for name, value in headers.items()]


# Most responses have the headers of an earlier one.
@lru_cache(maxsize=256)
def _raw_header(name: str, value: str) -> tuple[bytes, bytes]:
    return name.lower().encode("latin-1"), value.encode("latin-1")


_RAW_SECURITY_HEADERS: Final = raw_headers(SECURITY_HEADERS)
_RAW_REQUEST_ID_HEADER: Final = REQUEST_ID_HEADER.lower().encode()


def common_headers(request_id: str) -> list[tuple[bytes, bytes]]:
    """Return the headers of every response, as ASGI has them."""
    return [*_RAW_SECURITY_HEADERS, (_RAW_REQUEST_ID_HEADER, request_id.encode())]


def outcome_of(status: int) -> Literal["allowed", "refused", "failed"]:
    """Return the outcome of a response, in the words of the audit log."""
    return "allowed" if status < 400 else "refused" if status < 500 else "failed"


def new_request_id() -> str:
    """Return `req_` and 24 hexadecimal digits: 12 of the time in milliseconds, and 12 at random.

    Never the client's choice, which could forge a log line.
    """
    # With ids in the order of time, new entries of the audit log's index are neighbours. Random ids would each change
    # another page.
    return f"req_{int(time.time() * 1000):012x}{os.urandom(6).hex()}"


class LineHandler(logging.StreamHandler[TextIO]):
    """Writes log lines to a stream. A line that cannot be written, as on a full disk, is lost and fails no request."""

    def __init__(self, stream: TextIO, format_: LogFormat) -> None:
        super().__init__(stream)
        self.render_request = _render_json if format_ == "json" else _render_for_console

    def write(self, line: str) -> None:
        """Write one line, whose values need no masking and no escape."""
        self.acquire()
        try:
            self.stream.write(f"{line}\n")
            self.stream.flush()
        except Exception:  # noqa: BLE001, S110 - the stream is broken, and there is no other place to say so
            pass
        finally:
            self.release()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the name of the standard library
        """Name the place of a log call that failed. The default also prints its arguments, which may be secrets."""
        self.write(f"The log call at {record.pathname}:{record.lineno} failed.")


class RequestLog:
    """The log of one request, from its creation to `finish`."""

    __slots__ = ("_fields", "_started")

    def __init__(self, request_id: str) -> None:
        """Start the log. Until it is finished, all log lines of the current context contain the request id."""
        self._started = time.perf_counter()
        self._fields: dict[str, str | None] = {"request_id": request_id}
        _current.set(self._fields)

    def finish(self, method: str, path: str, status: int) -> tuple[str, float]:
        """Write the line of the request, and return its outcome and duration, in seconds.

        `status` is 0 if there was no response; `path` must be one of the server's.
        """
        # Without a response, the client has disconnected, or the process shuts down.
        outcome = outcome_of(status) if status else "aborted"
        seconds = time.perf_counter() - self._started
        milliseconds = seconds * 1000
        handler = self._direct_handler(method, path) if outcome == "allowed" else None
        if handler is None:
            log.info("request", method=method, path=path, status=status, outcome=outcome, ms=round(milliseconds, 1))
        elif _logger.isEnabledFor(logging.INFO):
            handler.write(handler.render_request(self._fields, method, path, status, milliseconds))
        _current.set(None)
        return outcome, seconds

    def _direct_handler(self, method: str, path: str) -> LineHandler | None:
        """Return where to write the line directly; None if a processor might change it or another handler wants it."""
        fields, handlers = self._fields, logging.root.handlers
        if len(handlers) != 1 or not isinstance(handlers[0], LineHandler) or not fields.keys() <= _DIRECT:
            return None
        # A secret cannot begin in one value and end in the next one: no secret contains a slash.
        return handlers[0] if _is_plain(f"{fields.get('client_id')}/{fields.get('jti')}/{method}/{path}") else None


def add_to_log(**fields: str | None) -> None:
    """Add fields, such as `client_id`, to all further log lines of the current request. None adds nothing."""
    if (current := _current.get()) is not None:
        current.update(fields)


def add_request_fields(_: Any, __: str, event: EventDict) -> EventDict:
    """Add the fields of the current request to an event (a processor of structlog)."""
    # A copy: a thread may log while the request goes on and adds a field.
    for name, value in dict(_current.get() or ()).items():
        if value is not None:
            event.setdefault(name, value)
    return event


def add_timestamp(_: Any, __: str, event: EventDict) -> EventDict:
    """Add the time to an event (a processor of structlog)."""
    event["timestamp"] = _timestamp()
    return event


# Most requests have the token and the path of an earlier one.
@lru_cache(maxsize=1024)
def _is_plain(values: str) -> bool:
    return _PLAIN.fullmatch(values) is not None and mask(values) == values


def _render_json(fields: dict[str, str | None], method: str, path: str, status: int, milliseconds: float) -> str:
    client_id, jti = fields.get("client_id"), fields.get("jti")
    caller = f'"client_id": "{client_id}", ' if client_id is not None else ""
    caller += f'"jti": "{jti}", ' if jti is not None else ""
    return (
        f'{{"method": "{method}", "path": "{path}", "status": {status}, "outcome": "allowed", '
        f'"ms": {milliseconds:.1f}, "event": "request", "request_id": "{fields["request_id"]}", {caller}'
        f'"level": "info", "timestamp": "{_timestamp()}"}}'
    )


def _render_for_console(fields: dict[str, str | None], method: str, path: str, status: int, milliseconds: float) -> str:
    client_id, jti = fields.get("client_id"), fields.get("jti")
    caller = f"client_id={client_id} " if client_id is not None else ""
    caller += f"jti={jti} " if jti is not None else ""
    return (
        f"{_timestamp()} [info     ] {'request':<30} {caller}method={method} ms={milliseconds:.1f} outcome=allowed "
        f"path={path} request_id={fields['request_id']} status={status}"
    )


def _timestamp() -> str:
    """Return the time of a line in UTC, to the microsecond (RFC 3339)."""
    now = time.time()
    return f"{_date_and_time(int(now))}.{int(now % 1 * 1_000_000):06}Z"


@lru_cache(maxsize=1)
def _date_and_time(second: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
