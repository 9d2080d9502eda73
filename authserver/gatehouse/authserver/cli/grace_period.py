"""How long a credential that is replaced is accepted beside the new one."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from gatehouse.authserver.credentials.lifecycle import MAX_GRACE_PERIOD, Lifetime
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.cli import parse_duration

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _parse(_: click.Context, __: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    grace_period = parse_duration(value)
    if grace_period is None or not 1 <= grace_period <= MAX_GRACE_PERIOD:
        raise click.BadParameter("write 90s, 15m, 12h or 7d: at least 1s, at most 90d")
    return grace_period


def grace_period_option(function: FunctionT) -> FunctionT:
    """Add `--grace-period` to a command, in seconds; 0 without it."""
    return click.option(
        "--grace-period",
        callback=_parse,
        metavar="TIME",
        help="How long the old one is accepted beside the new one: 90s, 15m, 12h or 7d.  [default: no longer]",
    )(function)


def lifetime_record(lifetime: Lifetime, now: int) -> dict[str, Any]:
    """Return the life of a credential as it is printed."""
    times = {name: getattr(lifetime, name) for name in ("created_at", "last_used_at", "expires_at")}
    return {
        **{name: None if time is None else iso_time(time) for name, time in times.items()},
        "state": "inactive" if lifetime.is_inactive(now) else "active",
    }


LIFETIME_COLUMNS = ("created_at", "last_used_at", "expires_at", "state")


def note_grace_period(old: Iterable[tuple[str, Lifetime]]) -> None:
    """Say until when what was replaced is accepted."""
    for name, lifetime in old:
        if lifetime.expires_at is not None and not lifetime.revoked:
            click.echo(f"{name} is accepted until {iso_time(lifetime.expires_at)}.", err=True)
