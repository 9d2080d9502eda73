"""What the `audit` commands of both servers share: the log that they read, and the filters for its events."""

from collections.abc import Callable, Collection
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import click
from sqlalchemy import Connection, select

from gatehouse.shared.protocol.clock import system_clock
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit.events import AuditAction, AuditTables
from gatehouse.shared.service.cli import FunctionT, Refusal, parse_duration
from gatehouse.shared.service.database import Database


class OpenLog(NamedTuple):
    """The audit log of one installation."""

    database: Database
    keys: Path
    """The audit key file."""
    admin: Administrator


class Open(Protocol):
    """Opens the audit log of the installation that a command is for."""

    def __call__(self, ctx: click.Context, /, *, patient: bool = False) -> AbstractContextManager[OpenLog]:
        """Return the log. With `patient`, no statement times out. Raises SchemaMismatch, InvalidSettings."""
        ...


@dataclass(frozen=True, slots=True)
class AuditLog:
    """The audit log of one server, for its commands."""

    server: str
    """The server's program."""
    tables: AuditTables
    actions: Collection[AuditAction]
    """What this server records."""
    open: Open

    def require_action(self, connection: Connection, action: str | None) -> None:
        """Refuse a filter for an action that does not exist. Raises Refusal."""
        if action is None or action in self.actions:
            return
        # Another version may have recorded other actions.
        recorded = set(connection.scalars(select(self.tables.events.c.action).distinct()))
        if action not in recorded:
            actions = ", ".join(sorted({*self.actions, *recorded}))
            raise Refusal(f"There is no action {printable(action)}. The actions are: {actions}.")


def _parse_time(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    if value is None:
        return None
    if (ago := parse_duration(value)) is not None:
        return system_clock() - ago
    try:
        time = datetime.fromisoformat(value)
    except ValueError:
        raise click.BadParameter("write 2026-01-31T12:00:00Z, or a time ago such as 90s, 15m, 6h, 7d") from None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def filter_options(function: FunctionT) -> FunctionT:
    """Add the filters of `event_conditions`, except `until`."""
    for option in (
        click.option(
            "--request",
            "request_id",
            metavar="REQUEST_ID",
            help="Only this request, with all details, including the remediation of a refusal.",
        ),
        click.option(
            "--since",
            metavar="TIME",
            callback=_parse_time,
            help="Only events since this time: 2026-01-31T12:00:00Z, or an age such as 90s, 15m, 6h or 7d.",
        ),
        click.option("--action", metavar="ACTION", help="Only this action, such as token.issue or tool.call."),
        click.option("--jti", help="Only events of this token. Both servers record its jti."),
        click.option(
            "--client", metavar="CLIENT_ID", help="Only requests of this client, and changes that admins made to it."
        ),
    ):
        function = option(function)
    return function


def until_option(function: FunctionT) -> FunctionT:
    """Add `--until`."""
    return click.option(
        "--until", metavar="TIME", callback=_parse_time, help="Only events before this time, written as for --since."
    )(function)


def limit_option(default: int) -> Callable[[FunctionT], FunctionT]:
    """Return a decorator that adds `--limit`."""
    return click.option(
        "--limit",
        type=click.IntRange(1, 10_000),
        default=default,
        show_default=True,
        help="Show at most this many events, starting with the newest.",
    )
