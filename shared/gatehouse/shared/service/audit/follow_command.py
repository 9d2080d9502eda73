"""`audit --follow`: events as JSON lines for a collector, until it is stopped."""

import sys
from pathlib import Path
from typing import Any, Final

import click
from sqlalchemy import Connection

from gatehouse.shared.service.audit.export import event_record
from gatehouse.shared.service.audit.following import (
    Following,
    cursor_before,
    parse_cursor,
    read_cursor_file,
    require_cursor,
    require_primary,
    write_cursor_file,
)
from gatehouse.shared.service.audit.ids import newest_id
from gatehouse.shared.service.audit.log import AuditLog
from gatehouse.shared.service.cli import FunctionT, until_output_closes
from gatehouse.shared.service.stream_output import LineOutput, Stop

_POLL_INTERVAL: Final = 0.5
"""Seconds between two reads."""


def follow_options(function: FunctionT) -> FunctionT:
    """Add `--follow` and its options."""
    for option in (
        click.option(
            "--cursor-file",
            type=click.Path(dir_okay=False, path_type=Path),
            metavar="FILE",
            help="With --follow, resume after the cursor in FILE, and keep FILE current.",
        ),
        click.option(
            "--after",
            metavar="CURSOR",
            callback=_parse_cursor,
            help="With --follow, resume after the line with this cursor; 0 for the whole log.",
        ),
        click.option(
            "--follow",
            is_flag=True,
            help="Print events as JSON lines as they are committed, from now on or from --since, until Ctrl-C.",
        ),
    ):
        function = option(function)
    return function


def _parse_cursor(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    try:
        return None if value is None else parse_cursor(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def follow_log(
    ctx: click.Context,
    log: AuditLog,
    after: int | None,
    cursor_file: Path | None,
    *,
    since: float | None,
    **filters: Any,
) -> None:
    """Print events after a cursor as JSON lines, as they are committed, until SIGINT, SIGTERM, or a closed pipe.

    The first cursor is `after`, or the one in the file; otherwise that of the time `since`, or of now. `filters` are
    the other keyword arguments of `event_conditions`.

    Raises:
        UsageError: both a cursor and a file are given.
        Refusal: the action does not exist, the cursor is beyond the log, or the database is a standby.
        OSError: the cursor file cannot be read or written.
    """
    if after is not None and cursor_file is not None:
        raise click.UsageError("Give --after or --cursor-file, not both.")
    stop = Stop()
    with log.open(ctx) as opened, stop.at_signals(), until_output_closes():
        with opened.database.connect() as connection:
            log.require_action(connection, filters["action"])
            require_primary(connection)
            cursor = _first_cursor(connection, log, after, cursor_file, since)
        following = Following(
            opened.database, log.tables.events, cursor, report=lambda text: click.echo(text, err=True), **filters
        )
        _follow(following, LineOutput(sys.stdout), cursor_file, stop)


def _first_cursor(
    connection: Connection, log: AuditLog, after: int | None, cursor_file: Path | None, since: float | None
) -> int:
    kept = read_cursor_file(cursor_file) if cursor_file is not None else after
    if kept is not None:
        require_cursor(connection, log.tables.events, kept)
        return kept
    first = (
        newest_id(connection, log.tables.events)
        if since is None
        else cursor_before(connection, log.tables.events, since)
    )
    if cursor_file is not None:
        # Otherwise a restart before the first event would begin later.
        write_cursor_file(cursor_file, first)
    return first


def _follow(following: Following, output: LineOutput, cursor_file: Path | None, stop: Stop) -> None:
    while not stop.requested:
        before = following.cursor
        events, more = following.read()
        output.write(event_record(event) | {"cursor": str(event["id"])} for event in events)
        if cursor_file is not None and following.cursor != before:
            write_cursor_file(cursor_file, following.cursor)
        if not more:
            output.wait(_POLL_INTERVAL)
