"""How both servers open their databases: SQLite in WAL mode by default, PostgreSQL by URL.

A transaction is declared as reading or writing. A writer acquires SQLite's write lock when it begins, because a reader
that starts to write midway fails at once with "database is locked", whatever the timeout.
"""

import contextlib
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from sqlalchemy import URL, Connection, Dialect, Engine, MetaData, create_engine, event, make_url, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry

from gatehouse.shared.service import postgresql
from gatehouse.shared.service.deadline import WAIT_LIMIT, remaining

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Gives every constraint a name, so that a migration can change it on both databases."""

READ_ONLY = {"gatehouse_read_only": True}
"""Execution options of an engine whose transactions only read."""

SNAPSHOT = READ_ONLY | {"gatehouse_snapshot": True}
"""Execution options of an engine whose transactions see the database as of their first query, and only read."""

LOCK_TIMEOUT = int(WAIT_LIMIT * 1000)
"""Milliseconds that a writer on SQLite waits for another writer, unless its request has less time left."""

_BUSY_STEP = 250
"""Milliseconds. SQLite's limit is rounded down to this step, so that most transactions need not change it."""

_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}


def new_metadata() -> MetaData:
    """Return empty metadata with the naming convention of both servers."""
    return MetaData(naming_convention=NAMING_CONVENTION)


def parse_database_url(text: str) -> URL:
    """Read a database URL, `sqlite:///relative/path` or `postgresql://user@host/name`.

    Raises:
        ValueError: neither SQLite nor PostgreSQL, or with an unknown option. The message never repeats the URL, which
            may hold a password.
    """
    try:
        url = make_url(text)
        backend = url.get_backend_name()
    except Exception:  # noqa: BLE001 - any parse failure may quote the URL
        raise ValueError("not a database URL; write sqlite:///var/file.db or postgresql://user@host/name") from None
    if backend == "postgres":
        # The name that libpq and many hosts use.
        backend, url = "postgresql", url.set(drivername="postgresql")
    if backend not in _DRIVERS:
        raise ValueError("only sqlite:// and postgresql:// databases are supported")
    if backend == "sqlite" and url.host is not None:
        raise ValueError(
            "needs three slashes before a relative path, as in sqlite:///var/file.db, and four before an absolute one"
        )
    if backend == "sqlite" and (url.database in {None, "", ":memory:"} or url.query):
        raise ValueError("an in-memory database is not shared between workers; name a file, without options")
    if backend == "postgresql":
        if "@" in (url.host or ""):
            # The driver would report what follows the first @ as the name of a host.
            raise ValueError("has a second @ before the host; write %40 for an @ in the user name or password")
        postgresql.check_options(url)
    return url


def shown_url(url: URL) -> str:
    """Return a URL to print: without its password, and without its options, which can hold secrets."""
    return url.set(query={}).render_as_string(hide_password=True)


class Database:
    """The connections of one process. `patient` lifts the limit on waiting, for long work."""

    def __init__(
        self, url: URL, *, pool_size: int = 1, patient: bool = False, lock_timeout: int = LOCK_TIMEOUT
    ) -> None:
        self.url = url
        self.engine = open_engine(url, pool_size=pool_size, patient=patient, lock_timeout=lock_timeout)
        self._reader = self.engine.execution_options(**READ_ONLY)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Open a session that only reads and never waits for a writer."""
        with Session(self._reader) as session:
            yield session

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """Open a connection that only reads, for queries that need no session."""
        with self._reader.connect() as connection:
            yield connection

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Open a session that commits when the block ends, and changes nothing when it raises."""
        with Session(self.engine) as session, session.begin():
            yield session

    def ping(self) -> None:
        """Query the database. Raises SQLAlchemyError if it does not answer."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_engine(
    url: URL,
    *,
    pool_size: int = 5,
    patient: bool = False,
    references: bool = True,
    lock_timeout: int = LOCK_TIMEOUT,
) -> Engine:
    """Return an engine. Connects on first use. With `patient`, no statement times out.

    `lock_timeout` is for SQLite, in milliseconds. The limits of PostgreSQL are in postgresql.py.

    Without `references`, SQLite enforces no foreign key. Migrations need that: to rebuild a table, they drop it under
    its old name, which would delete every row that refers to it (https://sqlite.org/lang_altertable.html, 7).
    """
    engine = create_engine(_driver_url(url), **_options(url, pool_size))
    if engine.dialect.name == "sqlite":
        _listen_on_sqlite(engine, references=references, lock_timeout=lock_timeout)
    else:
        postgresql.listen(engine, url, patient=patient)
    return engine


def placeholder(dialect: Dialect) -> str:
    """Return what stands for a value in the SQL of a database driver."""
    return "?" if dialect.paramstyle == "qmark" else "%s"


def create_file(url: URL) -> None:
    """Create an empty SQLite file and its folders, for their owner only. Does nothing for PostgreSQL."""
    path = sqlite_path(url)
    if path is None:
        return
    for folder in reversed(path.parents):
        folder.mkdir(exist_ok=True, mode=0o700)
    path.touch(mode=0o600)


def sqlite_path(url: URL) -> Path | None:
    """Return the file of an SQLite database, or None for PostgreSQL."""
    return Path(url.database).absolute() if url.get_backend_name() == "sqlite" and url.database else None


def others_may_write(path: Path) -> bool:
    """Tell whether anyone but its owner can change or replace a file."""
    return bool(path.stat().st_mode & 0o022 or (path.parent.stat().st_mode & 0o1002) == 0o0002)


def _driver_url(url: URL) -> URL:
    return postgresql.without_own_options(url).set(drivername=_DRIVERS[url.get_backend_name()])


def _options(url: URL, pool_size: int) -> dict[str, Any]:
    options: dict[str, Any] = {
        "pool_size": pool_size,
        "max_overflow": 0,
        "pool_timeout": WAIT_LIMIT,
        # Parameters are digests of secrets and data of callers. They must not reach an error text.
        "hide_parameters": True,
    }
    if url.get_backend_name() == "postgresql":
        options |= {"pool_pre_ping": True, "connect_args": postgresql.connect_args(url)}
    else:
        options["connect_args"] = {"factory": _SqliteConnection}
    return options


class _SqliteConnection(sqlite3.Connection):
    """Writes in turn with the other connections of its engine, and ends its transaction when it is closed.

    SQLite waits for its write lock by trying again after ever longer pauses. A thread could wait for seconds while
    another one writes again and again, so the threads of a process wait for each other first.

    SQLite keeps a closed connection, with its locks, until the last unfinished SELECT is garbage. A function that
    raises while it reads rows leaves one.
    """

    _turn: "threading.Lock | None" = None

    def wait_for_turn(self, turn: threading.Lock, seconds: float) -> None:
        """Wait until no other connection writes. The turn ends with the transaction. Raises OperationalError."""
        if not turn.acquire(timeout=seconds):
            raise OperationalError("BEGIN", None, sqlite3.OperationalError("database is locked"))
        self._turn = turn

    def _end_turn(self) -> None:
        if self._turn is not None:
            self._turn.release()
            self._turn = None

    def commit(self) -> None:
        super().commit()
        self._end_turn()

    def rollback(self) -> None:
        try:
            super().rollback()
        finally:
            self._end_turn()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self.rollback()
        super().close()


def _listen_on_sqlite(engine: Engine, *, references: bool, lock_timeout: int) -> None:
    path = Path(str(engine.url.database))
    turn = threading.Lock()

    @event.listens_for(engine, "do_connect")
    def refuse_missing(*_: Any) -> None:
        # SQLite would create an empty database in place of one that was moved away.
        if not path.exists():
            raise sqlite3.OperationalError("unable to open database file: there is none")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: ConnectionPoolEntry) -> None:
        # The driver must not begin transactions: the listener below does.
        connection.isolation_level = None
        cursor = connection.cursor()
        # Changing the journal mode waits for locks, too.
        cursor.execute(f"PRAGMA busy_timeout={_busy_timeout(lock_timeout)}")
        cursor.execute("PRAGMA journal_mode=WAL")
        # There may be no temporary folder, as in a container with a read-only root file system.
        cursor.execute("PRAGMA temp_store=MEMORY")
        cursor.execute(f"PRAGMA foreign_keys={'ON' if references else 'OFF'}")
        cursor.close()
        record.info["file"] = _identity(path)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        read_only = connection.get_execution_options().get("gatehouse_read_only", False)
        if not read_only:
            # If BEGIN fails, the turn ends with the rollback when the connection returns to the pool.
            driver_connection: Any = connection.connection.dbapi_connection
            driver_connection.wait_for_turn(turn, remaining(lock_timeout / 1000))
        if connection.info.get("busy_timeout") != (wait := _busy_timeout(lock_timeout)):
            connection.exec_driver_sql(f"PRAGMA busy_timeout={wait}")
            connection.info["busy_timeout"] = wait
        if not read_only and connection.info["file"] != _identity(path):
            # What is written to a file that was moved, deleted or replaced is lost, and SQLite does not notice.
            raise OperationalError("BEGIN", None, sqlite3.OperationalError("the database file was moved or replaced"))
        connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what identifies the file at a path on this machine; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _busy_timeout(limit: int) -> int:
    """Return how many milliseconds a transaction on SQLite may wait for a lock."""
    return min(limit, int(remaining() * 1000) // _BUSY_STEP * _BUSY_STEP)
