"""The options of a PostgreSQL URL: a provider's URL is used as it is, or the message names what to change."""

from typing import Any

import pytest
from sqlalchemy import event

from gatehouse.shared.service import deadline
from gatehouse.shared.service.database import open_engine, parse_database_url
from gatehouse.shared.service.postgresql import connect_args, is_behind_pooler, server_settings


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+asyncpg"])
def test_every_spelling_of_postgresql_is_read(scheme: str) -> None:
    assert parse_database_url(f"{scheme}://user@host/name").get_backend_name() == "postgresql"


@pytest.mark.parametrize(
    "query",
    [
        "sslmode=verify-full&sslrootcert=/etc/ca.pem&channel_binding=require",
        "connect_timeout=10&application_name=gatehouse&keepalives_idle=30&target_session_attrs=read-write",
        "host=a:5432&host=b:5432",
        "options=-clock_timeout%3D1s&options=--statement-timeout%3D2s",
        "options=endpoint%3Dep-cool-name",
        "pgbouncer=true&sslmode=require",
    ],
)
def test_options_of_libpq_and_pgbouncer_are_accepted(query: str) -> None:
    parse_database_url(f"postgresql://user@host/name?{query}")


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("schema=public", r"option schema, .*write options=-csearch_path%3DNAME"),
        ("prepare_threshold=0", r"option prepare_threshold, .*write pgbouncer=true"),
        ("prepareThreshold=0", r"option prepareThreshold, .*write pgbouncer=true"),
        ("statement_cache_size=0", r"option statement_cache_size, .*write pgbouncer=true"),
        ("ssl=true", r"option ssl, .*write sslmode=require"),
        ("connection_limit=5&pool_timeout=0", r"option connection_limit, .*: remove it; .*option pool_timeout, "),
        ("pgbouncer=maybe", "pgbouncer with another value than true or false"),
        ("connect_timeout=soon", "connect_timeout with a value that is not a number of seconds"),
        ("sslmode=require&sslmode=disable", "sslmode more than once"),
        ("%0A%1B[31m=1", r"has the option "),
    ],
)
def test_any_other_option_is_named(query: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as refusal:
        parse_database_url(f"postgresql://user:hunter2@host/name?{query}")
    assert str(refusal.value).isprintable()
    assert "hunter2" not in str(refusal.value)


@pytest.mark.parametrize(("query", "expected"), [("", False), ("?pgbouncer=false", False), ("?pgbouncer=true", True)])
def test_the_url_says_that_a_pooler_is_used(query: str, expected: bool) -> None:
    assert is_behind_pooler(parse_database_url(f"postgres://u@h/n{query}")) is expected


@pytest.mark.parametrize(
    ("limit", "query", "expected"), [(60, "", 5), (3, "", 3), (0, "", 2), (3, "?connect_timeout=9", "9")]
)
def test_a_connection_is_opened_within_the_deadline(limit: int, query: str, expected: int | str) -> None:
    engine = open_engine(parse_database_url(f"postgres://u@h/n{query}"))
    seen: list[Any] = []

    @event.listens_for(engine, "do_connect")
    def connect(*arguments: Any) -> None:
        seen.append(arguments[-1].get("connect_timeout"))
        raise ConnectionRefusedError

    with deadline.renewed(limit), pytest.raises(ConnectionRefusedError):
        engine.connect()
    assert seen == [expected]


@pytest.mark.parametrize(("query", "expected"), [("", 5), ("?connect_timeout=10", None), ("?pgbouncer=true", 5)])
def test_the_operator_may_set_the_time_to_connect(query: str, expected: int | None) -> None:
    """None: the driver reads it from the URL."""
    assert connect_args(parse_database_url(f"postgres://u@h/n{query}")).get("connect_timeout") == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("-clock_timeout%3D1s", {"lock_timeout"}),
        ("-c lock_timeout%3D1s --statement-timeout%3D2s", {"lock_timeout", "statement_timeout"}),
        ("endpoint%3Dep-cool-name", set()),
    ],
)
def test_the_settings_of_the_options_are_known(options: str, expected: set[str]) -> None:
    assert server_settings(parse_database_url(f"postgres://u@h/n?options={options}")) == expected
