"""What the commands for client secrets, client keys and resource credentials have in common."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.credentials.lifecycle import MAX_GRACE_PERIOD, Lifetime
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.cli import Refusal, parse_duration
from gatehouse.shared.service.output import print_records

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

Listing = Callable[[Session, int], Sequence[dict[str, Any]]]
"""Reads the records of some credentials, as of a time."""

LIFETIME_COLUMNS = ("created_at", "last_used_at", "expires_at", "state")

WITHIN_A_SECOND = "Takes effect at the token endpoint within one second."


def _parse_grace_period(_: click.Context, __: click.Parameter, value: str | None) -> int:
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
        callback=_parse_grace_period,
        metavar="TIME",
        help="How long the old credential stays valid: 90s, 15m, 12h or 7d.  [default: it is revoked at once]",
    )(function)


def lifetime_record(lifetime: Lifetime, now: int) -> dict[str, Any]:
    """Return the lifetime of a credential as it is printed."""
    times = {name: getattr(lifetime, name) for name in ("created_at", "last_used_at", "expires_at")}
    return {
        **{name: None if time is None else iso_time(time) for name, time in times.items()},
        "state": "inactive" if lifetime.is_inactive(now) else "active",
    }


def note_grace_period(old: Iterable[tuple[str, Lifetime]]) -> None:
    """Say until when each replaced credential is accepted."""
    for name, lifetime in old:
        if lifetime.expires_at is not None and not lifetime.revoked:
            click.echo(f"{printable(name)} is accepted until {iso_time(lifetime.expires_at)}.", err=True)


@contextmanager
def shown_once(name: str, output: str) -> Iterator[None]:
    """Print a new secret, the member `name`, in the block, before the transaction that created it commits.

    Raises:
        Refusal: standard output cannot be written. The transaction must fail: the secret cannot be shown again.
    """
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        raise Refusal(f"The secret cannot be printed ({error.strerror}), so nothing was changed.") from None
    if output == "table":
        click.echo(f"Keep {name} now: it is not stored and cannot be shown again.", err=True)


def list_credentials(ctx: click.Context, listing: Listing, columns: Sequence[str], output: str) -> None:
    """Print some credentials."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        print_records(listing(session, installation.admin.now()), columns, output)


def revoke_credential(
    ctx: click.Context,
    revoke: Callable[[Session, Administrator], object],
    listing: Listing,
    columns: Sequence[str],
    output: str,
) -> None:
    """Revoke a credential, and print the credentials that its owner still has."""
    with open_installation(ctx) as installation:
        with installation.database.write() as session:
            revoke(session, installation.admin)
            records = listing(session, installation.admin.now())
        print_records(records, columns, output)
    click.echo(WITHIN_A_SECOND, err=True)
