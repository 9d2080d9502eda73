"""Structured logs of both servers: one line per event, as JSON or for people, without secrets.

No code passes a secret to a log. In case a library or a later change does, the last processor masks what looks like
one.
"""

import logging
import sys
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.service.requests import LineHandler, add_request_fields, add_timestamp
from gatehouse.shared.service.settings import LogFormat, LogLevel


def mask_secrets(_: Any, __: str, event: EventDict) -> EventDict:
    """Mask tokens, client secrets and authorization headers in every string of an event."""
    return {name: _masked(value) for name, value in event.items()}


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {name: _masked(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_masked(item) for item in value]
    if isinstance(value, int | float | None):
        return value
    return mask(repr(value))


def _escape(_: Any, __: str, event: EventDict) -> EventDict:
    """Keep an event on one line, and indent a traceback below it. Not needed for JSON."""
    return {name: _on_lines(name, value) if isinstance(value, str) else value for name, value in event.items()}


def _on_lines(name: str, text: str) -> str:
    if name != "exception":
        return printable(text)
    return "\n".join(f"  {printable(line)}" for line in text.split("\n"))


def configure_logs(format_: LogFormat, level: LogLevel = "INFO") -> None:
    """Send events of structlog and of the standard library through the same processors to standard error."""
    before: list[Processor] = [
        add_request_fields,
        structlog.stdlib.add_log_level,
        add_timestamp,
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *before,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    render: list[Processor] = (
        [structlog.processors.JSONRenderer()]
        if format_ == "json"
        else [_escape, structlog.dev.ConsoleRenderer(colors=False)]
    )
    handler = LineHandler(sys.stderr, format_)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=before,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, mask_secrets, *render],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Authlib writes whole access tokens at DEBUG (rfc6749/grants/client_credentials.py).
    logging.getLogger("authlib").setLevel(max(logging.INFO, root.level))
    for chatty in ("httpx2", "httpcore2", "alembic", "mcp", "sqlalchemy"):
        logging.getLogger(chatty).setLevel(max(logging.WARNING, root.level))
