"""`audit verify`, `audit prune` and `audit key rotate`: prove that the log is whole, shorten it, replace its key."""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, BinaryIO, Final

import click
from sqlalchemy import func, select

from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.audit.events import AuditAction, event_conditions
from gatehouse.shared.service.audit.keys import AuditKeys, rotate_audit_keys
from gatehouse.shared.service.audit.log import AuditLog
from gatehouse.shared.service.audit.pruning import PruningRefused, prune_audit
from gatehouse.shared.service.audit.verification import verify_audit
from gatehouse.shared.service.cli import Refusal, confirm, example, output_option, parse_duration
from gatehouse.shared.service.database import SNAPSHOT
from gatehouse.shared.service.output import print_record, report_progress

_CHECKPOINT: Final = "audit checkpoint"
"""The event of the log line."""

_MIN_GRACE_PERIOD: Final = 60
"""Seconds in which every process of the node has surely read the new key."""

_MAX_GRACE_PERIOD: Final = 30 * 86400


def verify_command(log: AuditLog) -> click.Command:
    """Return the command `audit verify` of a server."""

    @click.command()
    @click.option(
        "--checkpoint",
        "file",
        type=click.File("rb"),
        metavar="FILE",
        help="Also compare with the checkpoints in FILE: the server's log in the format json, or its lines with "
        '"audit checkpoint"; - reads standard input.',
    )
    @output_option
    @click.pass_context
    @example(f"{log.server} audit verify\n{log.server} audit verify --checkpoint {log.server}.log")
    def verify(ctx: click.Context, /, file: BinaryIO | None, output: str) -> None:
        """Check that no event was altered, removed or inserted. Exit code 1 if one was.

        Without checkpoints that were kept elsewhere, the newest events can be cut off together with the checkpoints
        that list them. Anyone who holds an audit key can write a log that passes.
        """
        with log.open(ctx, patient=True) as opened:
            keys = AuditKeys.read(opened.keys)
            external = [] if file is None else list(_read_checkpoints(file, keys))
            with opened.database.engine.execution_options(**SNAPSHOT).connect() as connection:
                progress = partial(report_progress, rows="events")
                verified = verify_audit(connection, log.tables, keys, external=external, progress=progress)
        record: dict[str, Any] = {"events": verified.events, "checkpoints": verified.checkpoints}
        if file is not None:
            record["kept_elsewhere"] = len(external)
        print_record({**record, "finding": verified.finding}, output)
        if verified.finding is not None:
            ctx.exit(1)

    return verify


def _read_checkpoints(file: BinaryIO, keys: AuditKeys) -> Iterator[Mapping[str, Any]]:
    """Yield the checkpoints of this server in a log. Raises Refusal if there is none."""
    found = False
    for line in file:
        checkpoint = _parse_checkpoint(line)
        # One log can have the lines of both servers.
        if checkpoint is not None and checkpoint["kid"] in keys:
            found = True
            yield checkpoint
    if not found:
        raise Refusal(
            f"{printable(file.name)} has no checkpoint of this server. They are the lines with the event "
            f'"{_CHECKPOINT}" of a log in the format json.'
        )


def _parse_checkpoint(line: bytes) -> Mapping[str, Any] | None:
    try:
        members = json.loads(line) if _CHECKPOINT.encode() in line else None
    except ValueError:
        return None
    if not isinstance(members, dict) or members.get("event") != _CHECKPOINT:
        return None
    number, kid, link = (members.get(name) for name in ("checkpoint", "kid", "link"))
    return members if isinstance(number, int) and isinstance(kid, str) and isinstance(link, str) else None


def _parse_age(_: click.Context, __: click.Parameter, value: str) -> int:
    if (age := parse_duration(value)) is None:
        raise click.BadParameter("write an age such as 12h or 400d")
    return age


def prune_command(log: AuditLog) -> click.Command:
    """Return the command `audit prune` of a server."""

    @click.command()
    @click.option("--older-than", "age", required=True, metavar="AGE", callback=_parse_age, help="An age such as 400d.")
    @click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
    @output_option
    @click.pass_context
    @example(f"{log.server} audit export --until 400d > old.jsonl\n{log.server} audit prune --older-than 400d")
    def prune(ctx: click.Context, /, age: int, yes: bool, output: str) -> None:
        """Delete the events that are older than AGE. The rest of the log stays verifiable.

        Keeps the newest event, and what follows an event that was removed or altered, as evidence.
        """
        with log.open(ctx, patient=True) as opened:
            keys, admin = AuditKeys.read(opened.keys), opened.admin
            before = admin.clock() - age
            time = iso_time(before)
            with opened.database.connect() as connection:
                condition = event_conditions(log.tables.events, until=before)
                number = connection.scalar(select(func.count()).select_from(log.tables.events).where(*condition)) or 0
            deleted = 0
            if number:
                confirm(f"Delete {number} events before {time}?", yes=yes)
                # Before the deletion, so that it is recorded however it ends.
                with opened.database.write() as session:
                    admin.record(session, AuditAction.AUDIT_PRUNE, f"events before {time}", events=number)
                try:
                    deleted = prune_audit(opened.database.engine, log.tables, keys, before=before, clock=admin.clock)
                except PruningRefused as error:
                    raise Refusal(str(error)) from None
        print_record({"before": time, "deleted": deleted}, output)

    return prune


def _parse_grace_period(_: click.Context, __: click.Parameter, value: str) -> int:
    period = parse_duration(value)
    if period is None or not _MIN_GRACE_PERIOD <= period <= _MAX_GRACE_PERIOD:
        raise click.BadParameter("write a time from 1m to 30d, such as 15m or 12h")
    return period


def key_group(log: AuditLog) -> click.Group:
    """Return the group `audit key` of a server."""

    @click.group()
    @example(f"{log.server} audit key rotate")
    def key() -> None:
        """Rotate the key that authenticates audit events."""

    @key.command()
    @click.option(
        "--grace-period",
        default="1h",
        show_default=True,
        metavar="TIME",
        callback=_parse_grace_period,
        help="How long events under the old key are still valid: 1m, 15m, 12h or 7d.",
    )
    @output_option
    @click.pass_context
    @example(f"{log.server} audit key rotate")
    def rotate(ctx: click.Context, /, grace_period: int, output: str) -> None:
        """Add a new key to the audit key file, and use it for new events. Older events stay verifiable.

        Running servers read the new key within seconds. With several nodes, or a copy of the file for the server,
        replace every copy within the grace period.
        """
        with log.open(ctx) as opened, opened.database.write() as session:
            path, expiry = opened.keys, int(opened.admin.clock()) + grace_period
            kid = rotate_audit_keys(path, expiry)
            opened.admin.record(session, AuditAction.AUDIT_KEY_ROTATE, kid, old_key_expires_at=iso_time(expiry))
        print_record({"kid": kid, "file": str(path), "old_key_expires_at": iso_time(expiry)}, output)
        click.echo(
            f"Replace every copy of the file before {iso_time(expiry)}: events that a server records under the old key "
            "after that count as forged.",
            err=True,
        )

    return key
