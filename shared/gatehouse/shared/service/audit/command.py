"""The `audit` commands of both servers, and the search in the audit log for people or programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource
from sqlalchemy import Connection

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.audit.events import find_events
from gatehouse.shared.service.audit.export import export_command
from gatehouse.shared.service.audit.follow_command import follow_log, follow_options
from gatehouse.shared.service.audit.log import AuditLog, filter_options, limit_option
from gatehouse.shared.service.audit.trace import trace_command
from gatehouse.shared.service.audit.upkeep_commands import key_group, prune_command, verify_command
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.output import print_record, print_records

_COLUMNS = ("time", "actor", "action", "object", "outcome", "reason", "jti", "request_id")

_FOLLOWED_BY = ("client", "jti", "action", "since")
"""Filters that `--follow` accepts."""


def audit_group(log: AuditLog) -> click.Group:
    """Return the `audit` commands of a server."""

    @click.group(invoke_without_command=True)
    @follow_options
    @output_option
    @filter_options
    @limit_option(50)
    @click.pass_context
    @example(
        f"{log.server} audit --limit 10\n"
        f"{log.server} audit --client agent_0123456789abcdef0123 --output json\n"
        f"{log.server} audit --follow --cursor-file var/audit.cursor >> audit.jsonl"
    )
    def audit(ctx: click.Context, /, follow: bool, after: int | None, cursor_file: Path | None, **options: Any) -> None:
        """Search, follow, export, trace, verify and prune the audit log.

        Without a command, show the newest events that match, oldest of them first.
        """
        given = _given(ctx)
        if ctx.invoked_subcommand is not None:
            _refuse_options_before(ctx.invoked_subcommand, given)
        elif follow:
            _refuse_with_follow(given, options)
            follow_log(ctx, log, after, cursor_file, **{name: options[name] for name in _FOLLOWED_BY})
        elif after is not None or cursor_file is not None:
            raise click.UsageError("--after and --cursor-file belong to --follow.")
        else:
            with log.open(ctx) as opened, opened.database.connect() as connection:
                print_audit(connection, log, **options)

    for command in (
        export_command(log),
        trace_command(log),
        verify_command(log),
        prune_command(log),
        key_group(log),
    ):
        audit.add_command(command)
    return audit


def _given(ctx: click.Context) -> Mapping[str, str]:
    """Return the options on the command line by their parameters."""
    return {
        parameter.name: parameter.opts[0]
        for parameter in ctx.command.params
        if parameter.name is not None and ctx.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
    }


def _refuse_options_before(command: str, given: Mapping[str, str]) -> None:
    if given:
        raise click.UsageError(f"Write {', '.join(given.values())} after {command}, if {command} has it.")


def _refuse_with_follow(given: Mapping[str, str], options: Mapping[str, Any]) -> None:
    unusable = [given[name] for name in ("limit", "request_id") if name in given]
    if options["output"] == "table" and "output" in given:
        unusable.append("--output table")
    if unusable:
        raise click.UsageError(f"--follow prints JSON lines without end. Omit {', '.join(unusable)}.")


def print_audit(connection: Connection, log: AuditLog, *, output: str, **filters: Any) -> None:
    """Print the newest matching audit events, oldest first. `filters` are the keyword arguments of `find_events`.

    Raises:
        Refusal: there is no such action, or no such request.
    """
    log.require_action(connection, filters.get("action"))
    records: list[dict[str, Any]] = [
        {
            "time": iso_time(row["time"] / 1000, "milliseconds"),
            **{name: row[name] for name in (*_COLUMNS[1:], "detail")},
        }
        for row in find_events(connection, log.tables.events, **filters)
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


def _explain_absence(filters: Mapping[str, Any]) -> None:
    if filters.get("request_id"):
        raise Refusal(
            f"This audit log has no request {printable(filters['request_id'])}. "
            "It may be in the other server's audit log, or only in the log output."
        )
    if filters.get("client"):
        click.echo("Clients are named by their client_id. See: authserver client list", err=True)
