"""`audit trace`: the history of one token in the audit logs of both servers."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Final, NamedTuple

import click
from sqlalchemy import URL, ColumnElement, Connection, Table, func, inspect, select
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.shared.protocol.clock import iso_time, system_clock
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.audit.events import AuditAction, find_events
from gatehouse.shared.service.audit.export import event_record
from gatehouse.shared.service.audit.log import AuditLog, limit_option
from gatehouse.shared.service.cli import FunctionT, Refusal, example, output_option
from gatehouse.shared.service.database import SNAPSHOT, connect_read_only, parse_database_url, shown_url
from gatehouse.shared.service.failures import explain_database_failure
from gatehouse.shared.service.output import print_record, print_records

_COLUMNS: Final = ("time", "database", "actor", "action", "object", "outcome", "reason", "request_id")

_LIMIT: Final = 1000
"""Events that are shown by default."""

_CALLS: Final = (AuditAction.TOOL_CALL, AuditAction.RESOURCE_READ, AuditAction.MCP_REQUEST)

_REVOKE_ALL: Final = (AuditAction.TOKEN_REVOKE, AuditAction.CLIENT_DISABLE, AuditAction.CLIENT_DELETE)
"""What revokes every token of the client that is its object."""

_PEER: Final = {"authserver": "resourceserver", "resourceserver": "authserver"}


class Event(NamedTuple):
    """A row of an audit log, and the name of the database that it is from."""

    database: str
    row: Mapping[str, Any]

    @property
    def time(self) -> int:
        """Milliseconds since the epoch."""
        time: int = self.row["time"]
        return time


class Logs:
    """The audit logs of several databases, read together."""

    def __init__(self, table: Table, connections: Mapping[str, Connection]) -> None:
        """`connections` have the names of their databases."""
        self.table = table
        self._connections = connections

    def newest(self, jti: str, limit: int) -> list[Event]:
        """Return the newest events of a token, oldest of them first."""
        events = [
            Event(name, row)
            for name, connection in self._connections.items()
            for row in find_events(connection, self.table, jti=jti, limit=limit)
        ]
        return sorted(events, key=_time)[-limit:]

    def first(self, *conditions: ColumnElement[bool]) -> Event | None:
        """Return the oldest allowed event that meets the conditions."""
        query = select(self.table).where(self.table.c.outcome == "allowed", *conditions)
        query = query.order_by(self.table.c.time, self.table.c.id).limit(1)
        found = [
            Event(name, dict(row))
            for name, connection in self._connections.items()
            for row in connection.execute(query).mappings()
        ]
        return min(found, key=_time, default=None)

    def count(self, jti: str) -> int:
        """Return how many events a token has."""
        query = select(func.count()).where(self.table.c.jti == jti)
        return sum(connection.scalars(query).one() for connection in self._connections.values())

    def count_calls(self, jti: str) -> Mapping[str, int]:
        """Return how many calls were made with a token, by their outcome."""
        columns = self.table.c
        # A streaming tool has an event for each of its transactions; the last one tells how the call ended.
        last = select(func.max(columns.id)).where(columns.jti == jti, columns.action.in_(_CALLS))
        query = select(columns.outcome, func.count()).where(columns.id.in_(last.group_by(columns.request_id)))
        counts: Counter[str] = Counter()
        for connection in self._connections.values():
            for outcome, number in connection.execute(query.group_by(columns.outcome)):
                counts[outcome] += number
        return counts


def _time(event: Event) -> int:
    return event.time


class Trace(NamedTuple):
    """The history of a token."""

    token: Mapping[str, Any]
    """The summary."""
    events: Sequence[Mapping[str, Any]]
    """The newest events in the order of their time, each with its `database`."""
    recorded: int
    """How many events of the token there are."""


def trace_command(log: AuditLog) -> click.Command:
    """Return the command `audit trace` of a server."""
    peer = _PEER[log.server]

    @click.command()
    @click.argument("jti")
    @_databases_option
    @output_option
    @limit_option(_LIMIT)
    @click.pass_context
    @example(
        f"{log.server} audit trace 0123456789ab.42.AAAAAAAAAAAAAAAAAAAAAA \\\n"
        f"    --audit-database sqlite:///var/{peer}.db"
    )
    def trace(ctx: click.Context, /, jti: str, databases: Sequence[URL], output: str, limit: int) -> None:
        """Show the history of a token.

        Shows who obtained it, what was called with it, what was refused, and when it expired or was revoked.

        Each server records its own part. Name the databases of the other servers with --audit-database.
        """
        with ExitStack() as opened:
            database = opened.enter_context(log.open(ctx)).database
            own = opened.enter_context(database.engine.execution_options(**SNAPSHOT).connect())
            others = {shown_url(url): _connect_to(opened, url, log.tables.events) for url in databases}
            traced = trace_token(Logs(log.tables.events, {log.server: own, **others}), jti, system_clock(), limit)
        _print(traced, output)
        if not databases:
            click.echo(f"This is the part of {log.server}. For the rest, name the database of {peer}:", err=True)
            click.echo(f"{log.server} audit trace {printable(jti)} --audit-database URL", err=True)

    return trace


def _databases_option(function: FunctionT) -> FunctionT:
    return click.option(
        "--audit-database",
        "databases",
        metavar="URL",
        multiple=True,
        callback=_parse_urls,
        help="Also read the audit log in this database, without changing it; repeatable. Other users of the machine "
        "can see arguments: keep a password in a file for libpq (~/.pgpass).",
    )(function)


def _parse_urls(_: click.Context, __: click.Parameter, values: Sequence[str]) -> list[URL]:
    try:
        return [parse_database_url(value) for value in values]
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def _connect_to(opened: ExitStack, url: URL, table: Table) -> Connection:
    """Connect to the database of another server. Raises Refusal if it has no audit log."""
    try:
        connection = opened.enter_context(connect_read_only(url))
        has_log = inspect(connection).has_table(table.name)
    except SQLAlchemyError as error:
        raise Refusal(f"{shown_url(url)}: {explain_database_failure(error)}") from None
    if not has_log:
        raise Refusal(f"{shown_url(url)} has no audit log. Name the database of an authserver or a resourceserver.")
    return connection


def trace_token(logs: Logs, jti: str, now: float, limit: int) -> Trace:
    """Return what audit logs say about a token. `now` is seconds since the epoch.

    Raises:
        Refusal: they say nothing about it.
    """
    events = logs.newest(jti, limit)
    if not events:
        raise Refusal(
            f"No audit log here has an event of the token {printable(jti)}. To find a jti, run audit with --client or "
            "--action token.issue."
        )
    columns = logs.table.c
    issue = logs.first(columns.jti == jti, columns.action == AuditAction.TOKEN_ISSUE)
    revocation = _find_revocation(logs, jti, issue)
    calls = logs.count_calls(jti)
    token = {
        "jti": jti,
        **(_describe_issue(issue) if issue is not None else _describe_calls(events)),
        **_describe_state(issue, revocation, now),
        **{f"calls_{outcome}": calls.get(outcome, 0) for outcome in ("allowed", "refused", "failed")},
    }
    # The revocation of a key, or of every token of a client, has no jti.
    shown = {(event.database, event.row["id"]): event for event in (*events, *filter(None, [revocation]))}
    records = [{"database": event.database, **event_record(event.row)} for event in sorted(shown.values(), key=_time)]
    return Trace(token, records, logs.count(jti))


def _find_revocation(logs: Logs, jti: str, issue: Event | None) -> Event | None:
    """Return the first event that revoked a token before it expired: the token, its client, or its signing key."""
    columns = logs.table.c
    of_token = logs.first(columns.jti == jti, columns.action == AuditAction.TOKEN_REVOKE)
    if issue is None:
        return of_token
    detail = issue.row["detail"]
    valid = columns.time.between(issue.time, detail["exp"] * 1000)
    of_client = logs.first(
        columns.action.in_(_REVOKE_ALL),
        columns.object == _describe_issue(issue)["client_id"],
        columns.actor.startswith("admin:"),
        columns.jti.is_(None),
        valid,
    )
    of_key = logs.first(columns.action == AuditAction.KEY_REVOKE, columns.object == detail["kid"], valid)
    return min(filter(None, (of_token, of_client, of_key)), key=_time, default=None)


def _describe_issue(issue: Event) -> dict[str, Any]:
    """Return who obtained a token, how, and what for."""
    row, detail = issue.row, issue.row["detail"]
    # An admin who issues a token acts on the client; the resource is in the detail then.
    by_admin = "aud" in detail
    return {
        "client_id": row["object"] if by_admin else row["actor"],
        "resource": detail["aud"] if by_admin else row["object"],
        "scope": detail["scope"],
        "issued_at": _iso(issue.time),
        "issued_by": f"{row['actor']} at the command line" if by_admin else "the client, at the token endpoint",
        "signed_by": detail["kid"],
        "expires_at": iso_time(detail["exp"]),
    }


def _describe_calls(events: Sequence[Event]) -> dict[str, Any]:
    """Return what the calls with a token say about it, if no event says who obtained it."""
    callers = (event.row["actor"] for event in events if event.row["action"] in _CALLS)
    unknown = dict.fromkeys(("resource", "scope", "issued_at", "issued_by", "signed_by", "expires_at"))
    return {"client_id": next(callers, None), **unknown}


def _describe_state(issue: Event | None, revocation: Event | None, now: float) -> dict[str, Any]:
    if revocation is not None:
        row = revocation.row
        by = f"{row['actor']} ({row['action']})"
        return {"state": "revoked", "revoked_at": _iso(revocation.time), "revoked_by": by}
    state = "unknown"
    if issue is not None:
        state = "expired" if now >= issue.row["detail"]["exp"] else "active"
    return {"state": state, "revoked_at": None, "revoked_by": None}


def _iso(milliseconds: int) -> str:
    return iso_time(milliseconds / 1000, "milliseconds")


def _print(traced: Trace, output: str) -> None:
    if output == "json":
        print_record({"token": traced.token, "events": traced.events}, output)
        return
    print_record(traced.token, output)
    click.echo()
    # As in `audit`, the column of the reason shows the detail of an allowed event.
    records = [{**event, "reason": event["reason"] or event["detail"]} for event in traced.events]
    print_records(records, _COLUMNS, output)
    if traced.recorded > (shown := sum(event["jti"] == traced.token["jti"] for event in traced.events)):
        click.echo(f"The newest {shown} of {traced.recorded} events of the token are shown. See --limit.", err=True)
