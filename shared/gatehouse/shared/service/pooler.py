"""Recognizes a connection pooler in front of PostgreSQL that would lose something the servers rely on.

The servers rely on no state of a session: limits are set in each transaction, advisory locks end with it, and nothing
uses LISTEN or temporary tables. A pooler in transaction mode (PgBouncer and others) therefore loses only two things:
prepared statements, and what the operator sets by `options`.
"""

from typing import Any

from sqlalchemy import URL, Connection, Engine

from gatehouse.shared.service.database import open_engine
from gatehouse.shared.service.postgresql import is_behind_pooler, server_settings
from gatehouse.shared.service.settings import InvalidSettings


def require_usable_pooler(engine: Engine, url: URL, setting: str) -> None:
    """Check that no pooler is in front of the database, or that the URL suits it. Does nothing for SQLite.

    Args:
        engine: connects to the database.
        url: its URL.
        setting: the setting that holds the URL, for messages.

    Raises:
        InvalidSettings: says what would be lost, and how to fix it.
        SQLAlchemyError: the database does not answer.
    """
    if engine.dialect.name != "postgresql" or not _is_pooled(engine):
        return
    if lost := server_settings(url):
        raise InvalidSettings(
            f"{setting}: the connection pooler in front of PostgreSQL does not apply {', '.join(sorted(lost))} of "
            "`options` in the URL, or of PGOPTIONS. Remove it, and run: ALTER ROLE NAME SET ..."
        )
    if not is_behind_pooler(url) and _assigns_per_transaction(url):
        raise InvalidSettings(
            f"{setting}: the connection pooler in front of PostgreSQL gives each transaction another connection, where "
            "prepared statements do not exist. Add pgbouncer=true to the URL, which turns them off, or use the "
            "pooler's session mode."
        )


def _is_pooled(engine: Engine) -> bool:
    """Tell whether the process that a connection was opened to is not the one that answers.

    A pooler invents the process id (PostgreSQL 18, section 54.2.1, BackendKeyData).
    """
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        return bool(driver.info.backend_pid != _process(connection))


def _assigns_per_transaction(url: URL) -> bool:
    """Tell whether two idle clients share a process of PostgreSQL, or one client is moved to another process."""
    engine = open_engine(url, pool_size=2)
    try:
        with engine.connect() as first, engine.connect() as second:
            before = _process(first)
            first.rollback()
            # The second transaction stays open. If the pool has only one process, the first would wait for it.
            return _process(second) == before or _process(first) != before
    finally:
        engine.dispose()


def _process(connection: Connection) -> int:
    """Begin a transaction, and return the id of the process of PostgreSQL that serves it."""
    return int(connection.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
