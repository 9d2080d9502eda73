"""The trace of one token through the audit logs of both servers."""

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError
from support.audit_commands import TABLE, Log, audit_log
from support.clock import FakeClock
from support.databases import everything_in

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.database import connect_read_only, parse_database_url

JTI = "0123456789ab.7.AAAAAAAAAAAAAAAAAAAAAA"
OTHER_JTI = "0123456789ab.8.AAAAAAAAAAAAAAAAAAAAAA"
RESOURCE = "https://mcp.example.com/mcp"
TTL = 300

pytestmark = pytest.mark.both_databases


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that has passed the lifetime of all tokens, because the command reads the time of the system."""
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def log(empty_database: URL, clock: FakeClock, tmp_path: Path) -> Iterator[Log]:
    """The audit log of an authorization server."""
    with audit_log(empty_database, clock, tmp_path) as log:
        yield log


@pytest.fixture
def calls(tmp_path: Path, clock: FakeClock) -> Iterator[Log]:
    """The audit log of a resource server."""
    url = parse_database_url(f"sqlite:///{tmp_path}/resourceserver.db")
    with audit_log(url, clock, tmp_path, "resourceserver") as log:
        yield log


def url_of(log: Log) -> str:
    return log.url.render_as_string(hide_password=False)


def issue(log: Log, *, jti: str = JTI, client: str = "agent_1", ttl: int = TTL) -> int:
    """Record that a client obtains a token. Return when it expires."""
    expires_at = int(log.clock()) + ttl
    detail = {"scope": "env:read", "exp": expires_at, "kid": "kid-1"}
    log.add("token.issue", actor=client, object=RESOURCE, jti=jti, request_id="req_issue", detail=detail)
    log.clock.advance(1)
    return expires_at


def call(log: Log, outcome: str = "allowed", *, request: str = "", **members: Any) -> None:
    """Record a call with the token."""
    number = request or f"req_{log.clock():.0f}"
    log.add("tool.call", outcome, **{"actor": "agent_1", "jti": JTI, "object": "whoami", **members}, request_id=number)
    log.clock.advance(1)


def traced(log: Log, *others: Log, jti: str = JTI) -> dict[str, Any]:
    databases = [argument for other in others for argument in ("--audit-database", url_of(other))]
    result = log.run("trace", jti, *databases, "--output", "json")
    assert result.exit_code == 0, result.output
    trace: dict[str, Any] = json.loads(result.stdout)
    return trace


def test_a_token_is_traced_across_both_servers(log: Log, calls: Log, clock: FakeClock) -> None:
    start = clock()
    expires_at = issue(log)
    issue(log, jti=OTHER_JTI)
    call(calls)
    call(calls, "refused", object="create_environment", reason="needs env:write")
    call(calls, "failed", reason="the tool returned an error")
    call(calls, jti=OTHER_JTI)
    log.add("token.introspect", actor="res_1", object=RESOURCE, jti=JTI)
    trace = traced(log, calls)
    assert trace["token"] == {
        "jti": JTI,
        "client_id": "agent_1",
        "resource": RESOURCE,
        "scope": "env:read",
        "issued_at": iso_time(start, "milliseconds"),
        "issued_by": "the client, at the token endpoint",
        "signed_by": "kid-1",
        "expires_at": iso_time(expires_at),
        "state": "expired",
        "revoked_at": None,
        "revoked_by": None,
        "calls_allowed": 1,
        "calls_refused": 1,
        "calls_failed": 1,
    }
    other = f"sqlite:///{calls.url.database}"
    assert [(event["database"], event["action"], event["outcome"]) for event in trace["events"]] == [
        ("authserver", "token.issue", "allowed"),
        (other, "tool.call", "allowed"),
        (other, "tool.call", "refused"),
        (other, "tool.call", "failed"),
        ("authserver", "token.introspect", "allowed"),
    ]
    # Either server can be asked.
    reversed_ = traced(calls, log)
    assert reversed_["token"] == trace["token"]
    assert [event["id"] for event in reversed_["events"]] == [event["id"] for event in trace["events"]]


def test_the_table_has_the_summary_above_the_events(log: Log, calls: Log) -> None:
    issue(log)
    call(calls, "refused", reason="needs env:write")
    result = log.run("trace", JTI, "--audit-database", url_of(calls))
    summary, _, events = result.stdout.partition("\n\n")
    assert summary.splitlines()[0].split() == ["jti", JTI]
    assert "calls_refused  1" in summary
    header, *lines = events.splitlines()
    assert header.split()[:4] == ["time", "database", "actor", "action"]
    assert "scope=env:read" in lines[0]
    assert "needs env:write" in lines[1]
    assert result.stderr == ""


@pytest.mark.parametrize(
    ("action", "members", "revoked_by"),
    [
        ("token.revoke", {"actor": "agent_1", "object": RESOURCE, "jti": JTI}, "agent_1 (token.revoke)"),
        ("token.revoke", {"actor": "admin:root", "object": "agent_1", "jti": JTI}, "admin:root (token.revoke)"),
        (
            "token.revoke",
            {"actor": "admin:root", "object": "agent_1", "detail": {"all": True}},
            "admin:root (token.revoke)",
        ),
        ("client.disable", {"actor": "admin:root", "object": "agent_1"}, "admin:root (client.disable)"),
        ("client.delete", {"actor": "admin:root", "object": "agent_1"}, "admin:root (client.delete)"),
        ("key.revoke", {"actor": "admin:root", "object": "kid-1"}, "admin:root (key.revoke)"),
    ],
    ids=["by its client", "by an admin", "with all of its client", "client disabled", "client deleted", "its key"],
)
def test_a_revocation_is_shown_with_its_actor(log: Log, action: str, members: dict[str, Any], revoked_by: str) -> None:
    issue(log)
    at = iso_time(log.clock(), "milliseconds")
    log.add(action, **members)
    trace = traced(log)
    assert (trace["token"]["state"], trace["token"]["revoked_at"]) == ("revoked", at)
    assert trace["token"]["revoked_by"] == revoked_by
    assert [event["action"] for event in trace["events"]] == ["token.issue", action]


def test_what_did_not_revoke_the_token_is_not_its_revocation(log: Log) -> None:
    log.add("client.disable", actor="admin:root", object="agent_1")
    log.clock.advance(1)
    issue(log)
    log.add("client.disable", actor="admin:root", object="agent_2")
    log.add("key.revoke", actor="admin:root", object="kid-2")
    log.add("client.disable", actor="agent_2", object="agent_1")
    log.add("client.disable", "refused", actor="admin:root", object="agent_1")
    log.add("token.revoke", actor="admin:root", object="agent_1", jti=OTHER_JTI)
    log.add("token.revoke", "refused", actor="agent_2", jti=JTI, reason="the token of another client")
    log.clock.advance(TTL)
    log.add("client.delete", actor="admin:root", object="agent_1")
    trace = traced(log)
    assert (trace["token"]["state"], trace["token"]["revoked_at"]) == ("expired", None)
    assert [event["action"] for event in trace["events"]] == ["token.issue", "token.revoke"]


def test_a_token_that_an_admin_issued_names_the_admin(log: Log) -> None:
    detail = {"aud": RESOURCE, "scope": "env:read", "exp": int(log.clock()) + 10**9, "kid": "kid-1"}
    log.add("token.issue", actor="admin:root", object="agent_1", jti=JTI, detail=detail)
    token = traced(log)["token"]
    assert (token["client_id"], token["resource"]) == ("agent_1", RESOURCE)
    assert token["issued_by"] == "admin:root at the command line"
    assert token["state"] == "active"


def test_a_streaming_call_counts_once_by_its_last_event(log: Log, calls: Log) -> None:
    issue(log)
    for number in range(3):
        call(calls, request="req_stream", detail={"transaction": number})
    call(calls, "failed", request="req_stream", reason="the connection was closed before the end")
    token = traced(log, calls)["token"]
    assert (token["calls_allowed"], token["calls_failed"]) == (0, 1)


def test_the_part_of_one_server_says_where_the_rest_is(log: Log, calls: Log) -> None:
    call(calls)
    result = calls.run("trace", JTI)
    assert "client_id      agent_1" in result.stdout
    assert "state          unknown" in result.stdout
    assert f"resourceserver audit trace {JTI} --audit-database URL" in result.stderr
    # The event of an introspection has another actor than the token's client.
    log.add("token.introspect", "refused", actor="res_1", jti=JTI)
    assert traced(log)["token"]["client_id"] is None


def test_the_newest_events_are_shown_and_all_are_counted(log: Log) -> None:
    for _ in range(5):
        call(log)
    result = log.run("trace", JTI, "--limit", "2", "--audit-database", url_of(log))
    assert len(result.stdout.partition("\n\n")[2].splitlines()) == 1 + 2
    assert "The newest 2 of 10 events of the token are shown." in result.stderr


def test_an_unknown_token_is_refused(log: Log) -> None:
    assert f"No audit log here has an event of the token {OTHER_JTI}." in log.refusal("trace", OTHER_JTI)


@pytest.mark.parametrize(
    ("url", "text", "code"),
    [
        ("sqlite:///{folder}/other.db", "has no audit log. Name the database of an authserver", 1),
        ("sqlite:///{folder}/missing.db", "missing.db: The database does not answer", 1),
        ("mysql://user:secret@host/name", "only sqlite:// and postgresql:// databases are supported", 2),
        ("postgresql://user:secret@127.0.0.1:1/name", "The database does not answer", 1),
    ],
    ids=["another program's", "missing", "unsupported", "unreachable"],
)
def test_an_unusable_database_is_refused(log: Log, tmp_path: Path, url: str, text: str, code: int) -> None:
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE other (id)")
    issue(log)
    said = log.refusal("trace", JTI, "--audit-database", url.format(folder=tmp_path), code=code)
    assert text in said
    assert "secret" not in said
    assert not (tmp_path / "missing.db").exists()


def test_a_traced_database_is_not_changed(log: Log, calls: Log) -> None:
    issue(log)
    call(calls)
    calls.engine.dispose()
    before = everything_in(calls.url)
    traced(log, calls)
    assert everything_in(calls.url) == before


def test_a_read_only_connection_refuses_to_write(log: Log) -> None:
    with connect_read_only(log.url) as connection, pytest.raises(DBAPIError, match=r"(?i)read.?only"):
        connection.execute(TABLE.delete())
