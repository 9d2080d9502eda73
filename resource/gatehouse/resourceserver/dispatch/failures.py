"""What the caller and the operator learn of a call that failed."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.resourceserver.catalogue import Tool, ToolFailed
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.request_database import CommitUnknown
from gatehouse.resourceserver.dispatch.containment import name_of
from gatehouse.resourceserver.dispatch.payload import UnservableAnswer
from gatehouse.shared.service.audit.writer import AuditUnavailable
from gatehouse.shared.service.requests import UNAVAILABLE

NOTHING_CHANGED: Final = "Nothing was changed."

_PERHAPS: Final = "The call may have been carried out in part."

log = logging.getLogger(__name__)


class InvalidArguments(ToolFailed):
    """The arguments do not fit the tool's input schema, so the tool did not run."""

    def __init__(self, explanation: str) -> None:
        super().__init__(explanation, reason="invalid arguments")


@dataclass(frozen=True, slots=True)
class Failure:
    """A failed call."""

    message: str
    """The public text, which says what to do next."""
    reason: str
    """The reason in the audit log. Never the text of an exception, because it may repeat an argument."""
    unrecorded: str
    """The public text if the event cannot be written."""
    detail: Mapping[str, Any] = field(default_factory=dict)
    """Further members of the audit event."""
    outcome: str = "failed"
    """The outcome in the audit log."""
    code: int | None = None
    """The code of the JSON-RPC error to answer with; None for a result with `isError`."""
    waits: bool = True
    """The event is on disk before the answer is sent. False if the database may not answer."""


def unavailable(tool: Tool) -> str:
    """Return the public text for a call that cannot be finished or recorded now."""
    return f"{_effect(tool)} {UNAVAILABLE}"


def failure_of(tool: Tool, request_id: str, arguments: Mapping[str, Any], error: BaseException) -> Failure:
    """Return what to say about an exception that ended a call with these arguments."""
    try:
        return _explained(tool, request_id, arguments, error)
    except BaseException as second:  # noqa: BLE001 - to say what it is, the exception runs code of the tool
        return _internal(tool, request_id, second)


def _explained(tool: Tool, request_id: str, arguments: Mapping[str, Any], error: BaseException) -> Failure:
    if isinstance(error, InvalidArguments):
        return Failure(str(error), "invalid arguments", f"{NOTHING_CHANGED} {UNAVAILABLE}")
    if isinstance(error, tool.public_errors):
        return _public(tool, request_id, error)
    if isinstance(error, UnservableAnswer):
        log.error("tool %s: the result cannot be sent: %s", tool.name, error)
        text = f"The result of the tool cannot be sent. {error} {_effect(tool)} Report the request id {request_id}."
        return Failure(text, f"the result cannot be sent: {error}", unavailable(tool))
    if isinstance(error, CommitUnknown):
        log.error("tool %s: %s", tool.name, error)
        return Failure(_unknown(arguments), str(error), _unknown(arguments), waits=False)
    if isinstance(error, SQLAlchemyError | AuditUnavailable):
        log.error("tool %s: %s", tool.name, type(error).__name__)
        return Failure(unavailable(tool), f"database error: {type(error).__name__}", unavailable(tool), waits=False)
    return _internal(tool, request_id, error)


def _public(tool: Tool, request_id: str, error: BaseException) -> Failure:
    """Return the failure of a call whose exception has a text for the caller."""
    failure = Failure(str(error), *_for_operator(error, unavailable(tool)))
    if not isinstance(error, ToolFailed):
        return failure
    if error.code is None:
        return replace(failure, outcome=error.outcome)
    return replace(failure, message=f"{error} Report the request id {request_id}.", code=error.code)


def _internal(tool: Tool, request_id: str, error: BaseException) -> Failure:
    log.error("tool %s failed", tool.name, exc_info=error)
    message = f"The tool failed. Report the request id {request_id}."
    cause = f" from {name_of(error.__cause__)}" if error.__cause__ is not None else ""
    return Failure(message, f"internal error: {name_of(error)}{cause}", unavailable(tool))


def _effect(tool: Tool) -> str:
    return NOTHING_CHANGED if tool.transactional else _PERHAPS


def _unknown(arguments: Mapping[str, Any]) -> str:
    """Say what to do about a write that may or may not have been committed. The tool accepts an idempotency key."""
    text = "The outcome is unknown: the database did not report whether the change was saved."
    if arguments.get(IDEMPOTENCY_KEY) is not None:
        return f"{text} Repeat the call with the same {IDEMPOTENCY_KEY} and arguments: it does not run twice."
    return (
        f"{text} Read the current state before you repeat the call. With an {IDEMPOTENCY_KEY}, you could repeat it at "
        "once, and it would not run twice."
    )


def _for_operator(error: BaseException, unrecorded: str) -> tuple[str, str, dict[str, str]]:
    """Return the reason, the text for an unrecorded event, and the detail, of an error whose text is public."""
    # Other libraries have attributes of these names that are not texts, which the audit log could not store.
    reason, remediation = (
        value if isinstance(value := getattr(error, name, None), str) else None for name in ("reason", "remediation")
    )
    return reason or type(error).__name__, unrecorded, {"remediation": remediation} if remediation else {}
