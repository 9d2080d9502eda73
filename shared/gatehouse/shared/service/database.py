"""How both servers open their databases: SQLite in WAL mode by default, PostgreSQL by URL.

A transaction is declared as reading or writing. A writer acquires SQLite's write lock when it begins, because a reader
that starts to write midway fails at once with "database is locked", whatever the timeout.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final, Self, cast

from sqlalchemy import URL, Connection, Dialect, Engine, MetaData, QueuePool, create_engine, make_url, text
from sqlalchemy.orm import Session

from gatehouse.shared.service import postgresql, sqlite
from gatehouse.shared.service.deadline import WAIT_LIMIT

NAMING_CONVENTION = {
    "ix": "ix_%(column_0_label)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "ck": "ck_%(table_name)s_%(constraint_name)s",
    "fk": "fk_%(table_name)s_%(column_0_N_name)s_%(referred_table_name)s",
    "pk": "pk_%(table_name)s",
}
"""Gives every constraint a name, so that a migration can change it on both databases."""

BEFORE_COMMIT: Final = "gatehouse_before_commit"
"""Key in the `info` of a session of `Database.write`. Its value is None, or is called with the session when all else is
done; the context manager that it returns surrounds the COMMIT, and so learns whether that succeeded."""

READ_ONLY = {"gatehouse_read_only": True}
"""Execution options of an engine whose transactions only read."""

SNAPSHOT = READ_ONLY | {"gatehouse_snapshot": True}
"""Execution options of an engine whose transactions see the database as of their first query, and only read."""

LOCK_TIMEOUT = int(WAIT_LIMIT * 1000)
"""Milliseconds that a writer on SQLite waits for another writer, unless its request has less time left."""

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
    def write(self, committing: Callable[[], object] = lambda: None) -> Iterator[Session]:
        """Open a session that commits when the block ends, and changes nothing when it raises.

        `committing` is called right before the COMMIT. Without that call, nothing was committed.
        """
        with ExitStack() as around_commit, Session(self.engine, info={BEFORE_COMMIT: None}) as session, session.begin():
            yield session
            session.flush()
            if (before_commit := session.info[BEFORE_COMMIT]) is not None:
                around_commit.enter_context(before_commit(session))
            committing()

    def ping(self) -> None:
        """Query the database. Raises SQLAlchemyError if it does not answer."""
        with self.read() as session:
            session.execute(text("SELECT 1"))

    def pool(self) -> tuple[int, int]:
        """Return how many connections are in use, and how many may be."""
        pool = cast("QueuePool", self.engine.pool)
        return pool.checkedout(), pool.size()

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()


def open_engine(
    url: URL,
    *,
    pool_size: int = 5,
    patient: bool = False,
    references: bool = True,
    read_only: bool = False,
    lock_timeout: int = LOCK_TIMEOUT,
) -> Engine:
    """Return an engine. Connects on first use. With `patient`, no statement times out.

    With `read_only`, SQLite refuses to change the file, not even its journal mode. On PostgreSQL, that is an option of
    each transaction (SNAPSHOT).

    `lock_timeout` is for SQLite, in milliseconds. The limits of PostgreSQL are in postgresql.py.

    Without `references`, SQLite enforces no foreign key. Migrations need that: to rebuild a table, they drop it under
    its old name, which would delete every row that refers to it (https://sqlite.org/lang_altertable.html, 7).
    """
    engine = create_engine(_driver_url(url), **_options(url, pool_size))
    if engine.dialect.name == "sqlite":
        sqlite.listen(engine, references=references, lock_timeout=lock_timeout, read_only=read_only)
    else:
        postgresql.listen(engine, url, patient=patient)
    return engine


@contextmanager
def connect_read_only(url: URL) -> Iterator[Connection]:
    """Open a connection that cannot change the database, and sees it as of its first query."""
    engine = open_engine(url, pool_size=1, read_only=True)
    try:
        with engine.execution_options(**SNAPSHOT).connect() as connection:
            yield connection
    finally:
        engine.dispose()


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
        options["connect_args"] = {"factory": sqlite.SqliteConnection}
    return options
