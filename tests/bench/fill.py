"""Fills the SQLite database of a stopped server with copies of a row, as many as a large installation has.

A copy has the columns of its original, whatever they are, except those that must differ. One statement inserts all
copies; the indexes are created again afterwards, which takes less time than to keep them up to date.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_CLIENT_ID = "'bench_' || printf('%08d', i)"

CLIENT_ID = "bench_{:08d}"
"""The client_id of a copied client, with its number, which starts with 1."""


def add_clients(file: Path, client_id: str, number: int) -> None:
    """Copy a client with its grants and its secret, which all copies share."""
    with _open(file) as database:
        chosen = f"client_id = '{client_id}'"
        _copy(database, "client", chosen, number, {"client_id": _CLIENT_ID})
        _copy(database, "client_grant", chosen, number, {"client_id": _CLIENT_ID})
        secret = {"client_id": _CLIENT_ID, "secret_id": "lower(hex(randomblob(16)))"}
        _copy(database, "client_secret", chosen, number, secret)


def add_audit_rows(file: Path, action: str, number: int) -> None:
    """Copy the first audit event of an action, of a thousand clients and as if a minute had a hundred of them."""
    changes = {
        "time": "time - (:number - i) * 600",
        "sequence": "i",
        "request_id": "printf('req_%012x', time - (:number - i) * 600) || lower(hex(randomblob(6)))",
        "actor": "'client_' || (i % 1000)",
        "jti": "lower(hex(randomblob(16)))",
    }
    with _open(file) as database:
        chosen = f"id = (SELECT min(id) FROM audit_event WHERE action = '{action}')"
        _copy(database, "audit_event", chosen, number, changes, automatic="id")


@contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    """Open a database for one large transaction, without its indexes."""
    with closing(sqlite3.connect(file)) as database:
        indexes = database.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
        statements = dict(indexes.fetchall())
        with database:
            for name in statements:
                database.execute(f'DROP INDEX "{name}"')
            yield database
            for statement in statements.values():
                database.execute(statement)
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _copy(
    database: sqlite3.Connection, table: str, chosen: str, number: int, changes: dict[str, str], automatic: str = ""
) -> None:
    """Insert copies of the chosen rows. `changes` are expressions of `i`, which counts the copies from 1."""
    columns = [name for _, name, *_ in database.execute(f"PRAGMA table_info({table})") if name != automatic]
    values = ", ".join(changes.get(name, f'"{name}"') for name in columns)
    names = ", ".join(f'"{name}"' for name in columns)
    database.execute(
        f"INSERT INTO {table} ({names}) WITH RECURSIVE copies (i) AS "
        "(SELECT 1 UNION ALL SELECT i + 1 FROM copies WHERE i < :number) "
        f"SELECT {values} FROM (SELECT * FROM {table} WHERE {chosen}), copies",
        {"number": number},
    )
