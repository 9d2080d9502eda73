"""`audit export`: events for other programs, as JSON lines or CSV, streamed in the order of their time."""

import json
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import click
from sqlalchemy import Connection, Table, select

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.audit.events import event_conditions
from gatehouse.shared.service.audit.log import AuditLog, filter_options, until_option
from gatehouse.shared.service.cli import example, until_output_closes
from gatehouse.shared.service.database import SNAPSHOT
from gatehouse.shared.service.output import print_csv, report_progress

MEMBERS: Final = (
    "time",
    "id",
    "action",
    "outcome",
    "actor",
    "object",
    "jti",
    "request_id",
    "reason",
    "detail",
    "writer",
    "sequence",
)
"""The members of an exported event."""

_BATCH: Final = 500
"""Rows that are held in memory."""


def export_command(log: AuditLog) -> click.Command:
    """Return the command `audit export` of a server."""

    @click.command()
    @click.option(
        "--output",
        type=click.Choice(["jsonl", "csv"]),
        default="jsonl",
        show_default=True,
        help="Output format: JSON lines, or CSV with a header line.",
    )
    @filter_options
    @until_option
    @click.pass_context
    @example(
        f"{log.server} audit export --since 30d | gzip > audit.jsonl.gz\n"
        f"{log.server} audit export --output csv --since 2026-01-01 --until 2026-02-01 > january.csv"
    )
    def export(ctx: click.Context, /, output: str, **filters: Any) -> None:
        """Print every event that matches, oldest first."""
        with (
            log.open(ctx, patient=True) as opened,
            opened.database.engine.execution_options(**SNAPSHOT).connect() as connection,
            until_output_closes(),
        ):
            log.require_action(connection, filters["action"])
            print_events(stream_events(connection, log.tables.events, **filters), output)

    return export


def event_record(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON members of an event, with its time in ISO 8601 with milliseconds."""
    return {name: row[name] for name in MEMBERS} | {"time": iso_time(row["time"] / 1000, "milliseconds")}


def stream_events(connection: Connection, table: Table, **filters: Any) -> Iterator[Mapping[str, Any]]:
    """Yield every matching event, oldest first, with a few of them in memory.

    `filters` are the keyword arguments of `event_conditions`.
    """
    query = select(table).where(*event_conditions(table, **filters)).order_by(table.c.time, table.c.id)
    with connection.execute(query, execution_options={"stream_results": True, "yield_per": _BATCH}) as rows:
        yield from map(dict, rows.mappings())


def print_events(rows: Iterable[Mapping[str, Any]], output: str) -> None:
    """Print events as `jsonl`, one JSON object a line, or as `csv` below a header line."""
    records = map(event_record, _with_progress(rows))
    if output == "csv":
        print_csv(MEMBERS, (tuple(record.values()) for record in records))
        return
    for record in records:
        sys.stdout.write(f"{json.dumps(record)}\n")


def _with_progress(rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for number, row in enumerate(rows, start=1):
        yield row
        report_progress(number, "events")
