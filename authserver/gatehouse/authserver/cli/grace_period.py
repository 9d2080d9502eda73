"""How long a credential that is replaced is accepted beside the new one."""

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from gatehouse.authserver.credentials.lifecycle import MAX_OVERLAP, Life
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.durations import parse_duration

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])


def _parse(_: click.Context, __: click.Parameter, value: str | None) -> int:
    if value is None:
        return 0
    overlap = parse_duration(value)
    if overlap is None or not 1 <= overlap <= MAX_OVERLAP:
        raise click.BadParameter("write 90s, 15m, 12h or 7d: at least 1s, at most 90d")
    return overlap


def overlap_option(function: FunctionT) -> FunctionT:
    """Add `--overlap` to a command, in seconds; 0 without it."""
    return click.option(
        "--overlap",
        callback=_parse,
        metavar="TIME",
        help="How long the old one is accepted beside the new one: 90s, 15m, 12h or 7d.  [default: no longer]",
    )(function)


def life_record(life: Life, now: int) -> dict[str, Any]:
    """Return the life of a credential as it is printed."""
    times = {name: getattr(life, name) for name in ("created_at", "last_used_at", "expires_at")}
    return {
        **{name: None if time is None else iso_time(time) for name, time in times.items()},
        "state": "over" if life.is_over(now) else "live",
    }


LIFE_COLUMNS = ("created_at", "last_used_at", "expires_at", "state")


def note_overlap(old: Iterable[tuple[str, Life]]) -> None:
    """Say until when what was replaced is accepted."""
    for name, life in old:
        if life.expires_at is not None and not life.ended:
            click.echo(f"{name} is accepted until {iso_time(life.expires_at)}.", err=True)
