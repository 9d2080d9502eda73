"""The `audit` command of both servers: filters, and events for people or programs."""

from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any

import click
from sqlalchemy import Connection, Table, select

from gatehouse.shared.protocol.clock import iso_time, system_clock
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.audit import AuditAction, find_events
from gatehouse.shared.service.cli import FunctionT, Refusal, output_option, parse_duration
from gatehouse.shared.service.output import print_record, print_records

_COLUMNS = ("time", "actor", "action", "object", "outcome", "reason", "jti", "request_id")


def audit_options(function: FunctionT) -> FunctionT:
    """Add the filters of the `audit` commands, and `--output`."""
    for option in (
        click.option(
            "--limit",
            type=click.IntRange(1, 10_000),
            default=50,
            show_default=True,
            help="Show at most this many events, starting with the newest.",
        ),
        click.option(
            "--request",
            "request_id",
            metavar="REQUEST_ID",
            help="Only this request, with all details, including the remediation of a refusal.",
        ),
        click.option(
            "--since",
            metavar="TIME",
            callback=_parse_since,
            help="Only events since this time: 2026-01-31T12:00:00Z, or an age such as 90s, 15m, 6h or 7d.",
        ),
        click.option("--action", metavar="ACTION", help="Only this action, such as token.issue or tool.call."),
        click.option("--jti", help="Only events of this token. Both servers record its jti."),
        click.option(
            "--client", metavar="CLIENT_ID", help="Only requests of this client, and changes that admins made to it."
        ),
    ):
        function = option(function)
    return output_option(function)


def _parse_since(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    if (ago := parse_duration(value)) is not None:
        return system_clock() - ago
    try:
        since = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("write 2026-01-31T12:00:00Z, or a time ago such as 90s, 15m, 6h, 7d") from None
    return (since if since.tzinfo else since.replace(tzinfo=UTC)).timestamp()


def print_audit(
    connection: Connection, table: Table, *, output: str, actions: Collection[AuditAction], **filters: Any
) -> None:
    """Print the newest matching audit events, oldest first.

    `actions` are those that this server records; `filters` are the keyword arguments of `find_events`.

    Raises:
        Refusal: there is no such action, or no such request.
    """
    _require_action(connection, table, filters.get("action"), actions)
    records: list[dict[str, Any]] = [
        {
            "time": iso_time(row["time"] / 1000, "milliseconds"),
            **{name: row[name] for name in (*_COLUMNS[1:], "detail")},
        }
        for row in find_events(connection, table, **filters)
    ]
    if not records:
        _explain_absence(filters)
    if output == "table" and filters.get("request_id"):
        for record in records:
            detail = record.pop("detail")
            print_record({**record, **detail}, output)
        return
    if output == "table":
        # An allowed event has no reason, so the column shows its detail: what was granted, created or returned.
        for record in records:
            record["reason"] = record["reason"] or record["detail"]
    print_records(records, _COLUMNS, output)


def _require_action(connection: Connection, table: Table, action: str | None, known: Collection[AuditAction]) -> None:
    if action is None or action in known:
        return
    # Another version may have recorded other actions.
    recorded = set(connection.scalars(select(table.c.action).distinct()))
    if action not in recorded:
        actions = ", ".join(sorted({*known, *recorded}))
        raise Refusal(f"There is no action {printable(action)}. The actions are: {actions}.")


def _explain_absence(filters: Mapping[str, Any]) -> None:
    if filters.get("request_id"):
        raise Refusal(
            f"This audit log has no request {printable(filters['request_id'])}. "
            "It may be in the other server's audit log, or only in the log output."
        )
    if filters.get("client"):
        click.echo("Clients are named by their client_id. See: authserver client list", err=True)
