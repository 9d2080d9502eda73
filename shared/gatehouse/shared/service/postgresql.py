"""PostgreSQL: the options of its URL, the arguments of its connections, and the limits of its transactions.

The options are those of libpq (PostgreSQL 18, section 34.1.2), such as `sslmode`, `channel_binding` and
`connect_timeout`, and `pgbouncer=true`. Any other option is refused by name: an ignored one could be a limit or a
protection.
"""

import math
import os
import re
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import URL, Connection, Dialect, Engine, ExceptionContext, event

from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.deadline import WAIT_LIMIT, remaining

STATEMENT_LIMIT: Final = int(WAIT_LIMIT)
"""Seconds that a statement may take, including the wait for locks. Then the request is refused and its thread is free
again. Without a limit, one forgotten transaction could block every thread."""

_ALMOST_NOTHING: Final = 0.25
"""Seconds of its deadline that a request may have used before a lock gets less time than a statement."""

_SHORTEST_CONNECT: Final = 2
"""Seconds. The shortest connect_timeout of libpq (PostgreSQL 18, section 34.1.2)."""

_POOLER: Final = "pgbouncer"
"""The option of a URL that leads to a connection pooler in transaction mode, as Prisma and its hosts write it."""

_NO_PREPARED_STATEMENTS: Final = f"write {_POOLER}=true to use no prepared statements"

_REPLACEMENTS: Final = {
    "schema": "write options=-csearch_path%3DNAME, or set the search_path of the role",
    "prepare_threshold": _NO_PREPARED_STATEMENTS,
    "preparethreshold": _NO_PREPARED_STATEMENTS,
    "prepared_statements": _NO_PREPARED_STATEMENTS,
    "prepared_statement_cache_size": _NO_PREPARED_STATEMENTS,
    "statement_cache_size": _NO_PREPARED_STATEMENTS,
    "ssl": "write sslmode=require or sslmode=verify-full",
}
"""Options of other programs and drivers, and what to write instead."""

_SETTING: Final = re.compile(r"(?:-c\s*|--)([A-Za-z_.-]+)\s*=")
"""A server setting in the text of `options` (libpq, section 34.1.2)."""


def check_options(url: URL) -> None:
    """Check the options of a URL. Raises ValueError, which names each unusable one and what to write instead."""
    if "password" in url.query:
        raise ValueError("has a password among its options, where it is not kept secret; write USER:PASSWORD@HOST")
    if problems := list(_option_problems(url)):
        raise ValueError("; ".join(problems))


def _option_problems(url: URL) -> Iterator[str]:
    # Only a URL of PostgreSQL needs its driver.
    from psycopg.pq import Conninfo  # noqa: PLC0415

    known = {option.keyword.decode() for option in Conninfo.get_defaults()} | {_POOLER}
    for name, value in url.query.items():
        if name not in known:
            instead = _REPLACEMENTS.get(name.lower(), "remove it")
            yield f"has the option {quoted(name)}, which PostgreSQL's client library does not know: {instead}"
        elif not isinstance(value, str) and name not in {"host", "options"}:
            yield f"has the option {name} more than once"
        elif name == _POOLER and value not in {"true", "false"}:
            yield f"has the option {name} with another value than true or false"
        elif name == "connect_timeout" and re.fullmatch(r"[0-9]{1,4}", str(value), re.ASCII) is None:
            yield "has the option connect_timeout with a value that is not a number of seconds"


def is_behind_pooler(url: URL) -> bool:
    """Tell whether a URL says that a pooler assigns a connection to each transaction (`pgbouncer=true`)."""
    return url.query.get(_POOLER) == "true"


def without_own_options(url: URL) -> URL:
    """Return a URL with only the options that libpq knows."""
    return url.difference_update_query([_POOLER])


def server_settings(url: URL) -> frozenset[str]:
    """Return the names of the server settings that the operator sets by `options` in the URL, or by PGOPTIONS."""
    return frozenset(name.replace("-", "_").lower() for name in _SETTING.findall(server_options(url)))


def server_options(url: URL) -> str:
    """Return the `options` of the URL or of the environment."""
    options = url.query.get("options", os.environ.get("PGOPTIONS", ""))
    return options if isinstance(options, str) else " ".join(options)


def connect_args(url: URL) -> dict[str, Any]:
    """Return the arguments of every connection."""
    arguments: dict[str, Any] = {
        # The driver must not begin transactions: the listener does.
        "autocommit": True,
        # With another encoding, a text could be read back as a different one, or not at all.
        "client_encoding": "utf8",
    }
    if "connect_timeout" not in url.query:
        arguments["connect_timeout"] = int(WAIT_LIMIT)
    if "options" in url.query:
        arguments["options"] = server_options(url)
    if is_behind_pooler(url):
        arguments["prepare_threshold"] = None
    return arguments


def listen(engine: Engine, url: URL, *, patient: bool = False) -> None:
    """Begin the transactions of an engine with limits, unless `patient`, and hide values in its errors.

    A connection is opened within the deadline of its request, but libpq allows at least 2 seconds. A `connect_timeout`
    in the URL and a limit in its `options` stay as the operator set them.

    The other limits end with the transaction: limits of the connection would need `options`, which a pooler refuses or
    ignores, or a SET, which would also apply to the other clients of the pooler.
    """
    configured = server_settings(url)
    limits = ""
    if not patient and "statement_timeout" not in configured:
        limits = f"; SET LOCAL statement_timeout = '{STATEMENT_LIMIT}s'"
    limits_locks = not patient and "lock_timeout" not in configured

    def begin(connection: Connection) -> None:
        mode = " ISOLATION LEVEL REPEATABLE READ READ ONLY" if _is_snapshot(connection) else ""
        wait = remaining()
        # The limit of statements includes their waits. Zero would be no limit.
        late = limits_locks and wait < STATEMENT_LIMIT - _ALMOST_NOTHING
        # One message for all, so that the limits cost no round trip.
        connection.exec_driver_sql(
            f"BEGIN{mode}{limits}{f'; SET LOCAL lock_timeout = {max(1, int(wait * 1000))}' if late else ''}"
        )

    def connect(_: Dialect, __: object, ___: object, arguments: dict[str, Any]) -> None:
        arguments["connect_timeout"] = max(_SHORTEST_CONNECT, math.ceil(remaining()))

    if "connect_timeout" not in url.query:
        event.listen(engine, "do_connect", connect)
    event.listen(engine, "begin", begin)
    event.listen(engine, "handle_error", _hide_values)


def _is_snapshot(connection: Connection) -> bool:
    return bool(connection.get_execution_options().get("gatehouse_snapshot"))


def _hide_values(context: ExceptionContext) -> None:
    """Remove the values of a refused row or parameter that PostgreSQL quotes in an error."""
    # With an engine for PostgreSQL, the driver is loaded; SQLite needs none of it.
    import psycopg  # noqa: PLC0415

    cause = context.original_exception
    if not isinstance(cause, psycopg.Error) or cause.sqlstate is None:
        return
    name = type(cause).__name__
    text = name if isinstance(cause, psycopg.DataError) else f"{name}: {cause.diag.message_primary}"
    for error in filter(None, (cause, context.sqlalchemy_exception)):
        error.args = (text,)
