"""What the two command lines have in common: output, refusals, exit codes.

Exit codes: 0 done, 1 refused (the message says how to fix it), 2 wrong usage.
"""

import inspect
import io
import json
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table as Grid
from sqlalchemy import Connection, Table, select
from sqlalchemy.exc import SQLAlchemyError

from gatehouse.shared.protocol.clock import iso_time, system_clock
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.addresses import explain_os_error
from gatehouse.shared.service.audit import find_events
from gatehouse.shared.service.checks import Check, passed
from gatehouse.shared.service.database import explain_failure
from gatehouse.shared.service.durations import parse_duration
from gatehouse.shared.service.migrations import SchemaMismatch
from gatehouse.shared.service.settings import InvalidSettings

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


TAKES_A_KEY = {"ignore_unknown_options": True, "help_option_names": ["--help"]}
"""Context settings of a command whose argument names a key: one thumbprint of 64 begins with a dash, as options do."""


class Refusal(click.ClickException):
    """The command was understood and not carried out. Exit code 1; nothing was changed."""

    exit_code = 1

    def __init__(self, message: str) -> None:
        # A file's name, or what a database holds, must not act on the terminal; several problems keep their lines.
        super().__init__("\n".join(printable(line) for line in message.split("\n")))


class Commands(click.Group):
    """A group whose failures are messages: no traceback, no SQL, no connection string reaches the terminal."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command, and turn what an operator can fix into a refusal."""
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A terminal that cannot show a character shows its escape.
            sys.stdout.reconfigure(errors="backslashreplace")
        try:
            result = super().invoke(ctx)
            # What is still to be written can fail, too.
            sys.stdout.flush()
        except (InvalidSettings, SchemaMismatch) as error:
            raise Refusal(str(error)) from None
        except SQLAlchemyError as error:
            raise Refusal(explain_failure(error)) from None
        except UnicodeError:
            raise Refusal("An argument or a file is not text in UTF-8.") from None
        except OSError as error:
            raise Refusal(explain_os_error(error)) from None
        finally:
            _let_go_of_output()
        return result


def _let_go_of_output() -> None:
    """Do not try again at the end of the process what standard output did not take: that would end in another code."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def server_group(function: Callable[..., None], cls: type[Commands] = Commands) -> click.Group:
    """Make the group of a server's commands, with `--env-file` and `--version`."""
    group: click.Group = click.group(cls=cls, context_settings={"help_option_names": ["-h", "--help"]})(
        click.option(
            "--env-file",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            expose_value=False,
            callback=_remember_env_file,
            help="Read settings from this file; variables of the environment win.",
        )(click.version_option(package_name="gatehouse")(function))
    )
    return group


def _remember_env_file(ctx: click.Context, _: click.Parameter, value: Path | None) -> None:
    ctx.obj = value


def env_file_of(ctx: click.Context) -> Path | None:
    """Return the `--env-file` that a command was given."""
    env_file: Path | None = ctx.find_root().obj
    return env_file


def join_scopes(_: click.Context, __: click.Parameter, values: tuple[str, ...]) -> str:
    """Take `--scope "a b"` and `--scope a --scope b` for the same."""
    return " ".join(values)


def output_option(function: FunctionT) -> FunctionT:
    """Add `--output table|json` to a command."""
    return click.option(
        "--output",
        type=click.Choice(["table", "json"]),
        default="table",
        show_default=True,
        help="For people, or for programs.",
    )(function)


def example(text: str) -> Callable[[FunctionT], FunctionT]:
    """Append an example to a command's help."""
    return partial(_append_example, text)


def _append_example(text: str, function: FunctionT) -> FunctionT:
    lines = "\n".join(f"  {line}" for line in text.strip().splitlines())
    # The example has no indentation, so what stands before it must have none left.
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n\b\nExample:\n{lines}\n"
    return function


def print_record(record: Mapping[str, Any], output: str) -> None:
    """Print one object: JSON, or a line for each member."""
    if output == "json":
        click.echo(json.dumps(record, indent=2))
        return
    width = max((len(name) for name in record), default=0)
    for name, value in record.items():
        click.echo(f"{name:<{width}}  {_cell(value)}")


def print_records(records: Sequence[Mapping[str, Any]], columns: Sequence[str], output: str) -> None:
    """Print a list of objects: JSON with every member, or a table of the named columns."""
    if output == "json":
        click.echo(json.dumps(list(records), indent=2))
        return
    if not records:
        click.echo("(none)")
        return
    print_table(columns, [[record.get(column) for column in columns] for record in records])


def print_table(columns: Sequence[str], values: Sequence[Sequence[Any]]) -> None:
    """Print rows under the names of their columns, which may repeat and may be anybody's text."""
    headers, rows = [printable(column) for column in columns], [[_cell(value) for value in row] for row in values]
    table = Grid(*headers, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False, emoji=False)
    # Whole values, one line for each object: a cut client_id is of no use to the next command.
    console.width = max(
        console.width, sum(2 + max(map(cell_len, column)) for column in zip(headers, *rows, strict=True))
    )
    console.print(table, soft_wrap=True)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        return " ".join(f"{printable(str(name))}={_cell(item)}" for name, item in value.items()) or "-"
    if isinstance(value, list | tuple):
        return " ".join(_cell(item) for item in value) or "-"
    return printable(str(value))


EXPECTED_FAILURES = (InvalidSettings, SchemaMismatch, Refusal, SQLAlchemyError, OSError)
"""What a check of an installation may end with."""

explain_option = click.option(
    "--explain",
    is_flag=True,
    help="List every setting: its value, where that is from, and its purpose.",
)


def print_checks(ctx: click.Context, checks: Sequence[Check], output: str) -> None:
    """Print checks, and end with exit code 1 unless all passed."""
    print_records([check.record() for check in checks], ("check", "outcome", "detail"), output)
    if not passed(checks):
        ctx.exit(1)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before what cannot be undone. Where nobody answers, `--yes` is the only consent."""
    try:
        consent = yes or click.confirm(question, err=True)
    except click.Abort:
        raise Refusal("This cannot be undone. Repeat the command with --yes.") from None
    if not consent:
        raise Refusal("Nothing was changed.")


def audit_options(function: FunctionT) -> FunctionT:
    """Add the filters of the `audit` commands, and `--output`."""
    limit = click.IntRange(1, 10_000)
    for option in (
        click.option("--limit", type=limit, default=50, show_default=True, help="The newest so many."),
        click.option(
            "--request",
            "request_id",
            metavar="REQUEST_ID",
            help="Only this request, in full: why, and what would fix it.",
        ),
        click.option(
            "--since",
            metavar="TIME",
            callback=_parse_since,
            help="Not before: 2026-01-31T12:00:00Z, or 90s, 15m, 6h, 7d ago.",
        ),
        click.option("--action", metavar="ACTION", help="Only this action, such as token.issue or tool.call."),
        click.option("--jti", help="Only what concerns this token; both servers' trails name it."),
        click.option(
            "--client", metavar="CLIENT_ID", help="Only what this client did or was refused, or was done to it."
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
    connection: Connection, table: Table, *, output: str, actions: Collection[str] = (), **filters: Any
) -> None:
    """Print the newest matching audit events, the oldest of them first. `actions` is what this server records.

    Raises:
        Refusal: there is no such action, or no such request.
    """
    _require_action(connection, table, filters.get("action"), actions)
    columns = ("time", "actor", "action", "object", "outcome", "reason", "jti", "request_id")
    records: list[dict[str, Any]] = [
        {"time": iso_time(row["time"] / 1000, "milliseconds"), **{name: row[name] for name in (*columns[1:], "detail")}}
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
        # What was granted, made or answered stands where a refusal has its reason.
        for record in records:
            record["reason"] = record["reason"] or record["detail"]
    print_records(records, columns, output)


def _require_action(connection: Connection, table: Table, action: str | None, known: Collection[str]) -> None:
    if action is None or action in known:
        return
    # An older version may have recorded others.
    recorded = set(connection.scalars(select(table.c.action).distinct()))
    if action not in recorded:
        raise Refusal(f"There is no action {printable(action)}. There are: {', '.join(sorted({*known, *recorded}))}.")


def _explain_absence(filters: Mapping[str, Any]) -> None:
    if filters.get("request_id"):
        raise Refusal(
            f"This trail has no request {printable(filters['request_id'])}. "
            "It may be in the other server's trail, or only in the log."
        )
    if filters.get("client"):
        click.echo("Clients are named by their client_id. See: authserver client list", err=True)
