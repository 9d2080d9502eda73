"""Connection poolers in front of PostgreSQL, imitated by a function; tests/availability has a real PgBouncer.

A pooler shows itself by the id of the process that answers, so each test replaces the function that returns it.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import pytest
from sqlalchemy import URL

from gatehouse.shared.service.database import create_file, open_engine
from gatehouse.shared.service.failures import explain
from gatehouse.shared.service.pooler import require_usable_pooler
from gatehouse.shared.service.settings import InvalidSettings

DIRECT = "SELECT pg_catalog.pg_backend_pid()"
SESSION_MODE = "SELECT 1000000 + pg_catalog.pg_backend_pid()"
ONE_CONNECTION_FOR_ALL = "SELECT 1"
NEVER_THE_SAME = "SELECT nextval('public.process')::integer"


@pytest.fixture
def check(empty_database: URL) -> Callable[[str, str], None]:
    create_file(empty_database)
    name = empty_database.database

    def check(process: str, query: str) -> None:
        url = empty_database
        engine = open_engine(url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE SEQUENCE public.process")
            connection.exec_driver_sql(f"CREATE FUNCTION public.pg_backend_pid() RETURNS integer RETURN ({process})")
            connection.exec_driver_sql(f"ALTER DATABASE {name} SET search_path = public, pg_catalog")
        engine.dispose()
        for option in filter(None, query.split("&")):
            url = url.update_query_string(option)
        pooled = open_engine(url)
        try:
            require_usable_pooler(pooled, url, "AUTHSERVER_DATABASE_URL")
        finally:
            pooled.dispose()

    return check


def refused(text: str) -> AbstractContextManager[object]:
    return pytest.raises(InvalidSettings, match=f"^AUTHSERVER_DATABASE_URL: .*{text}")


@pytest.mark.only_on("postgresql")
@pytest.mark.parametrize(
    ("process", "query", "expected"),
    [
        (DIRECT, "", nullcontext()),
        (DIRECT, "options=-clock_timeout%3D1s", nullcontext()),
        (SESSION_MODE, "", nullcontext()),
        (SESSION_MODE, "options=-clock_timeout%3D1s", refused("does not apply lock_timeout")),
        (ONE_CONNECTION_FOR_ALL, "", refused("Add pgbouncer=true")),
        (NEVER_THE_SAME, "", refused("Add pgbouncer=true")),
        (ONE_CONNECTION_FOR_ALL, "pgbouncer=true", nullcontext()),
        (ONE_CONNECTION_FOR_ALL, "pgbouncer=true&options=-clock_timeout%3D1s", refused("does not apply lock_timeout")),
    ],
)
def test_a_pooler_that_would_lose_something_is_refused(
    check: Callable[[str, str], None], process: str, query: str, expected: AbstractContextManager[object]
) -> None:
    with expected:
        check(process, query)


def test_sqlite_has_no_pooler(empty_database: URL) -> None:
    create_file(empty_database)
    engine = open_engine(empty_database)
    require_usable_pooler(engine, empty_database, "AUTHSERVER_DATABASE_URL")
    engine.dispose()


def test_a_pooler_that_refuses_options_is_explained() -> None:
    from psycopg import OperationalError
    from sqlalchemy.exc import OperationalError as Wrapped

    error = Wrapped(None, None, OperationalError("FATAL: unsupported startup parameter: options"))
    assert "refuses the `options` of the database URL" in str(explain(error))
