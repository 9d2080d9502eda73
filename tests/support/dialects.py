"""SQLAlchemy's dialects as the tests use them: all engines share their compiled statements, and SQLite does not fsync.

SQLAlchemy compiles a statement once per engine, and every test opens its own engines: without this module, compiling
is half of what a test with a database costs.
"""

from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite

_compiled: dict[Any, Any] = {}


class _EqualDialect:
    """Makes dialects of one class equal, because the dialect is part of a compiled statement's key.

    Both servers configure every engine of a driver alike, so a statement compiles to the same SQL on each.
    """

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class SharedPysqlite(_EqualDialect, SQLiteDialect_pysqlite):
    supports_statement_cache = True

    def on_connect(self) -> Callable[[Any], None]:
        return _without_fsync(super().on_connect())


class SharedPsycopg(_EqualDialect, PGDialect_psycopg):
    supports_statement_cache = True


def _without_fsync(prepare: Callable[[Any], None] | None) -> Callable[[Any], None]:
    """Commits wait for the disk in order to survive a power failure, and no test has one."""

    def connected(connection: Any) -> None:
        if prepare is not None:
            prepare(connection)
        cursor = connection.cursor()
        cursor.execute("PRAGMA synchronous=OFF")
        cursor.close()

    return connected


def use_test_dialects() -> None:
    """Use these dialects for every engine that is created from now on."""
    registry.register("sqlite.pysqlite", __name__, SharedPysqlite.__name__)
    registry.register("postgresql.psycopg", __name__, SharedPsycopg.__name__)
    event.listen(Engine, "engine_connect", _use_shared_cache)


def _use_shared_cache(connection: Connection) -> None:
    connection.execution_options(compiled_cache=_compiled)
