"""Both servers behind a real PgBouncer, which gives each transaction any of a few connections."""

import base64
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest
from local_stack import CommandRefused, LocalStack
from sqlalchemy import URL
from support.databases import PostgreSQL
from support.limits import VARIABLES
from support.pgbouncer import PGBOUNCER, running_pgbouncer

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="needs pgbouncer: apt-get install pgbouncer")

CALLERS = 16
CALLS = 30
SERVERS = ("AUTHSERVER", "RESOURCESERVER")


@pytest.fixture
def databases(postgresql: PostgreSQL) -> Iterator[dict[str, URL]]:
    urls = {name: postgresql.create_database() for name in SERVERS}
    yield urls
    for url in urls.values():
        postgresql.drop_database(url)


def settings(pooler: URL, databases: dict[str, URL], query: str) -> dict[str, str]:
    return VARIABLES | {
        f"{name}_DATABASE_URL": f"{pooler.set(database=url.database).render_as_string()}{query}"
        for name, url in databases.items()
    }


def load(stack: LocalStack, client: dict[str, Any]) -> Counter[str]:
    """Send token requests and tool calls that write, and return the answers by kind."""
    pair = base64.b64encode(f"{client['client_id']}:{client['client_secret']}".encode()).decode()

    def call(caller: int) -> Counter[str]:
        answers: Counter[str] = Counter()
        with httpx2.Client(trust_env=False, timeout=30) as http:
            for number in range(CALLS):
                token = http.post(
                    f"{stack.issuer}/token",
                    data={"grant_type": "client_credentials"},
                    headers={"Authorization": f"Basic {pair}"},
                )
                answers[f"token {token.status_code}"] += 1
                if token.status_code != 200:
                    continue
                message = {"name": "create_environment", "arguments": {"name": f"e{caller}-{number}"}}
                called = http.post(
                    stack.resource,
                    json={"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": message},
                    headers={
                        "Authorization": f"Bearer {token.json()['access_token']}",
                        "Accept": "application/json, text/event-stream",
                        "MCP-Protocol-Version": "2025-11-25",
                    },
                )
                failed = called.status_code == 200 and called.json().get("result", {}).get("isError")
                answers[f"call {called.status_code}{' failed' if failed else ''}"] += 1
        return answers

    with ThreadPoolExecutor(CALLERS) as threads:
        return sum(threads.map(call, range(CALLERS)), Counter())


def test_no_request_fails_and_no_event_is_lost_behind_a_pooler(
    postgresql: PostgreSQL, databases: dict[str, URL], tmp_path: Path
) -> None:
    with running_pgbouncer(postgresql.url, tmp_path, "transaction") as pooler:
        stack = LocalStack(tmp_path / "stack", settings=settings(pooler, databases, "?pgbouncer=true"))
        (stack.folder / "var").mkdir(parents=True)
        stack.init()
        workspace = stack.run_json("resourceserver", "workspace", "create", "--name", "acme")["workspace_id"]
        client = stack.create_client("writer", "env:write", "--claim", f"workspace_id={workspace}")
        stack.start_all()
        try:
            started = time.monotonic()
            answers = load(stack, client)
            seconds = time.monotonic() - started
        finally:
            stack.stop()
        total = CALLERS * CALLS
        print(f"\n{total} token requests and {total} calls in {seconds:.1f} s through 4 connections: {dict(answers)}")
        assert answers == {"token 200": total, "call 200": total}
        for server, action in (("authserver", "token.issue"), ("resourceserver", "tool.call")):
            events = stack.run_json(server, "audit", "--client", client["client_id"], "--limit", "5000")
            assert sum(event["action"] == action for event in events) == total
        assert other_clients_limits(pooler.set(database=databases["AUTHSERVER"].database)) == {("0", "0")}
        for log in ("authserver", "resourceserver"):
            assert "Traceback" not in stack.log(log)


def other_clients_limits(pooler: URL) -> set[tuple[str, str]]:
    """Return the limits that another client of the pool finds in every connection of PostgreSQL."""
    connections = [
        psycopg.connect(pooler.render_as_string(), prepare_threshold=None)  # each holds one in its transaction
        for _ in range(4)
    ]
    try:
        query = "SELECT current_setting('statement_timeout'), current_setting('lock_timeout')"
        return {connection.execute(query).fetchone() or ("", "") for connection in connections}
    finally:
        for connection in connections:
            connection.close()


@pytest.mark.parametrize(
    ("mode", "query", "more", "problem"),
    [
        ("transaction", "", "", "Add pgbouncer=true to the URL"),
        ("transaction", "", "server_round_robin = 1", "Add pgbouncer=true to the URL"),
        ("session", "", "", None),
        ("transaction", "?pgbouncer=true", "", None),
        ("transaction", "?options=-clock_timeout%3D1s", "", "the `options` of the database URL"),
        (
            *("session", "?options=-clock_timeout%3D1s", "ignore_startup_parameters = options"),
            "does not apply lock_timeout of `options`",
        ),
    ],
)
def test_a_pooler_that_would_lose_something_is_recognised(
    postgresql: PostgreSQL,
    databases: dict[str, URL],
    tmp_path: Path,
    mode: str,
    query: str,
    more: str,
    problem: str | None,
) -> None:
    direct = LocalStack(tmp_path, settings=settings(postgresql.url, databases, ""))
    (direct.folder / "var").mkdir()
    direct.init()
    with running_pgbouncer(postgresql.url, tmp_path, mode, more=more) as pooler:
        ports = direct.authserver_port, direct.resourceserver_port
        stack = LocalStack(tmp_path, *ports, settings=settings(pooler, databases, query))
        if problem is None:
            stack.run("authserver", "check")
            return
        for command in ("check", "init", "serve"):
            with pytest.raises(CommandRefused) as refusal:
                stack.run("authserver", command)
            if command != "check":
                assert problem in refusal.value.message
