"""Options that several commands of `authserver issuer` share."""

from pathlib import Path
from typing import Final

import click

from gatehouse.authserver.workloads.issuer_keys import MAX_LENGTH
from gatehouse.authserver.workloads.registration import MAX_LIFETIME
from gatehouse.shared.service.cli import parse_duration

FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)

ONE_TIME: Final = {"yes": True, "no": False, "auto": None}
"""Values of `--one-time`. None stands for the default of the kind."""


def parse_lifetime(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    """Read the seconds of a lifetime. Raises BadParameter."""
    if value is None:
        return None
    seconds = parse_duration(f"{value}s" if value.isdecimal() else value)
    if seconds is None or not 1 <= seconds <= MAX_LIFETIME:
        raise click.BadParameter("write 600 (seconds), 90s, 15m or 12h: at least 1s, at most 24h")
    return seconds


def read_jwks(path: Path) -> bytes:
    """Read a file up to one byte over its limit, so that a larger one is refused."""
    with path.open("rb") as file:
        return file.read(MAX_LENGTH + 1)
