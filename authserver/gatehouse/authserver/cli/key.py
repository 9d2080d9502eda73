"""`authserver key`: the keys that sign access tokens."""

from typing import Any

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.authserver.keys.lifecycle import KeyLifecycle, Policy
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.keys.sealed_keys import lifecycle_of
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cli import TAKES_A_KEY, confirm, example, output_option
from gatehouse.shared.service.output import print_record, print_records


@click.group()
@example("authserver key list\nauthserver key rotate")
def key() -> None:
    """List, rotate and revoke signing keys. The server rotates them automatically."""


def _next_transition(lifecycle: KeyLifecycle, policy: Policy) -> str:
    """Return what ends a key's state, and when."""
    match lifecycle.state:
        case "next":
            return f"signs from {iso_time(policy.signs_at(lifecycle))}"
        case "active":
            return f"is replaced {iso_time(policy.successor_at(lifecycle) + policy.lead)}"
        case "retiring":
            return f"is removed {iso_time(policy.removed_at(lifecycle))}"


def _record(row: SigningKeyRow, policy: Policy, *, decrypts: bool) -> dict[str, Any]:
    times = {name: getattr(row, name) for name in ("published_at", "activated_at", "retired_at")}
    return {
        "kid": row.kid,
        "alg": row.alg,
        "state": row.state if decrypts else f"{row.state}, undecryptable",
        **{name: None if time is None else iso_time(time) for name, time in times.items()},
        "then": _next_transition(lifecycle_of(row), policy),
    }


@key.command("list")
@output_option
@click.pass_context
@example("authserver key list")
def list_(ctx: click.Context, output: str) -> None:
    """List the signing keys and their states.

    A key is first next (published), then active (signs), then retiring (published until its tokens have expired).
    """
    with open_installation(ctx) as installation:
        rotation = installation.rotation()
        with installation.database.read() as session:
            decrypted = rotation.sealed_keys.read(session)
    records = [_record(row, rotation.policy, decrypts=row.kid in decrypted.keys) for row in decrypted.key_rows]
    columns = ("kid", "alg", "state", "published_at", "activated_at", "retired_at", "then")
    print_records(records, columns, output)


@key.command()
@output_option
@click.pass_context
@example("authserver key rotate")
def rotate(ctx: click.Context, output: str) -> None:
    """Publish the next signing key now. It signs as soon as every cached key set contains it.

    That takes 7 minutes: clients may cache the key set for 5, and 2 more cover clocks and polls. No token is refused
    meanwhile. To stop a leaked key at once, use `key revoke`.
    """
    with open_installation(ctx) as installation:
        rotation = installation.rotation(installation.admin.actor)
        with installation.database.write() as session:
            record = _record(rotation.publish(session), rotation.policy, decrypts=True)
    print_record(record, output)


@key.command(context_settings=TAKES_A_KEY)
@click.argument("kid")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver key revoke KID --yes")
def revoke(ctx: click.Context, kid: str, yes: bool, output: str) -> None:
    """Revoke a signing key, and every token that it signed.

    Use it for a key that may have leaked. Resource servers reject these tokens from their next poll, within seconds.
    Other services may cache the key set for 5 minutes. If the key was active, another one signs at once.
    """
    with open_installation(ctx) as installation:
        rotation = installation.rotation(installation.admin.actor)
        with installation.database.read() as session:
            row = session.get(SigningKeyRow, kid)
        if row is None:
            raise CommandRefused(f"There is no key {kid}. List them with: authserver key list")
        tokens = _affected_tokens(row, rotation)
        confirm(f"Revoke the key {kid}? This invalidates {tokens}.", yes=yes)
        with installation.database.write() as session:
            rotation.revoke(session, kid)
        active = installation.keys().signing_key.kid
    print_record({"kid": kid, "revoked": True, "tokens": tokens, "active": active}, output)
    if row.state == "active":
        click.echo(
            "If the database may have leaked too, also revoke the other keys. See: authserver key list", err=True
        )


def _affected_tokens(row: SigningKeyRow, rotation: Rotation) -> str:
    """Say which tokens a key has signed, and until when they would have been valid."""
    if row.activated_at is None:
        return "no token: the key has signed none"
    last = row.retired_at if row.retired_at is not None else int(rotation.clock())
    until = iso_time(last + rotation.policy.lifetime)
    return f"every token issued from {iso_time(row.activated_at)} to {iso_time(last)}, valid until {until} at most"
