"""Failures that an operator can fix, each explained in a line without SQL, a connection string or a traceback."""

import re

from sqlalchemy.exc import DataError, IntegrityError, OperationalError, ProgrammingError, SQLAlchemyError
from sqlalchemy.orm.exc import StaleDataError

from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.cli import Refusal
from gatehouse.shared.service.migrations import SchemaMismatch
from gatehouse.shared.service.settings import InvalidSettings

EXPECTED_FAILURES = (InvalidSettings, SchemaMismatch, Refusal, SQLAlchemyError, OSError)
"""What a check of an installation may fail with."""

_WAIT_ENDED = frozenset({"55P03", "57014", "40P01"})
"""SQLSTATEs of PostgreSQL: lock_not_available, query_canceled, deadlock_detected."""

_SQLITE = {
    "locked": "Another process is writing to the database. Try again.",
    "file is not a database": "The file is not an SQLite database. Check the database URL, or restore the file from a "
    "backup.",
    "disk is full": "The disk of the database is full, and nothing was changed.",
    "readonly database": "The database is read-only: this user may not write its file, or the file system.",
    "moved or replaced": "The file of the database was moved, deleted or replaced. Put it back, or restart the server.",
}
"""What an operator can do about errors of SQLite, by a part of their texts."""

_POSTGRESQL = {
    "25006": "The database is read-only: PostgreSQL is in recovery, or the user or database is set to read only.",
    "53100": "The disk of the database is full, and nothing was changed.",
}
"""What an operator can do about errors of PostgreSQL, by SQLSTATE."""

_CONNECTION_FAILURE = re.compile(r'server at "([^"]*)"(?: \([^)]*\))?, port ([0-9]+) failed: ([^\n]*)')


def explain(error: Exception) -> str | None:
    """Return the message for an operator about a failure; None for an unexpected one."""
    if isinstance(error, SQLAlchemyError):
        return explain_database_failure(error)
    if isinstance(error, UnicodeError):
        return "An argument or a file is not text in UTF-8."
    if isinstance(error, OSError):
        return f"{error.filename or 'A file'} cannot be used: {error.strerror or 'input/output'}."
    return str(error) if isinstance(error, EXPECTED_FAILURES) else None


def explain_database_failure(error: SQLAlchemyError) -> str:
    """Say what an operator can do about a failure of the database, without its SQL or its URL."""
    cause = getattr(error, "orig", None)
    for part, text in _SQLITE.items():
        if part in str(cause):
            return text
    if (state := getattr(cause, "sqlstate", None)) in _POSTGRESQL:
        return _POSTGRESQL[str(state)]
    if getattr(cause, "sqlstate", None) in _WAIT_ENDED:
        return "Another process holds a lock that the command needs, and nothing was changed. Try again."
    if isinstance(error, StaleDataError):
        return "Another command changed the same row, and nothing was changed here. Check the result and try again."
    if "unsupported startup parameter" in str(cause):
        return (
            "The connection pooler in front of the database refuses the `options` of the database URL or of PGOPTIONS. "
            "Remove them, and set what they set with: ALTER ROLE NAME SET ..."
        )
    kind = type(cause or error).__name__
    if isinstance(error, IntegrityError | DataError | ProgrammingError):
        return f"The database refused the command ({kind}), and nothing was changed. Another command may have won."
    kind += f", {where}" if (where := _connection_failure(error)) else ""
    return f"The database does not answer ({kind}). Check the database URL and that the server is running."


def _connection_failure(error: SQLAlchemyError) -> str:
    """Return where a connection failed and why, as libpq says it, without the password; empty for other causes."""
    cause = getattr(error, "orig", None)
    # Only an error of psycopg has a sqlstate, and it is None where no server answered.
    if not isinstance(error, OperationalError) or getattr(cause, "sqlstate", "") is not None:
        return ""
    found = _CONNECTION_FAILURE.search(str(cause))
    return f"{found[1]}:{found[2]}: {quoted(found[3])}" if found else quoted(str(cause).partition("\n")[0])
