"""`authserver key`: what access tokens are signed with, and what that is sealed with."""

from typing import Any

import click

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.authserver.keys import sealing_key_rotation as resealing
from gatehouse.authserver.keys.encryption import FILE_NAME, NEXT_FILE_NAME, generate_sealing_key
from gatehouse.authserver.keys.lifecycle import Key, Policy
from gatehouse.authserver.keys.rotation import Rotation
from gatehouse.authserver.keys.sealed_keys import lifetime_of
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.cli import TAKES_A_KEY, confirm, example, output_option, print_record, print_records


@click.group()
@example("authserver key list\nauthserver key rotate")
def key() -> None:
    """Signing keys: rotated by the server itself; here to see, to hasten, to revoke."""


def _then(lifetime: Key, policy: Policy) -> tuple[str, int]:
    """Return what a key's state ends with, and when."""
    match lifetime.state:
        case "next":
            return "signs", policy.signs_at(lifetime)
        case "active":
            return "is followed", policy.successor_at(lifetime) + policy.lead
        case "retiring":
            return "is gone", policy.gone_at(lifetime)


def _record(row: SigningKeyRow, policy: Policy, *, opens: bool) -> dict[str, Any]:
    then, at = _then(lifetime_of(row), policy)
    times = {name: getattr(row, name) for name in ("published_at", "activated_at", "retired_at")}
    return {
        "kid": row.kid,
        "alg": row.alg,
        "state": row.state if opens else f"{row.state}, does not open",
        **{name: None if time is None else iso_time(time) for name, time in times.items()},
        "then": f"{then} {iso_time(at)}",
    }


@key.command("list")
@output_option
@click.pass_context
@example("authserver key list")
def list_(ctx: click.Context, output: str) -> None:
    """List the signing keys: next (published), active (signs), retiring (published until its tokens are over)."""
    with open_installation(ctx) as installation:
        rotation = installation.rotation()
        with installation.database.read() as session:
            contents = rotation.sealed_keys.read(session)
    records = [_record(row, rotation.policy, opens=row.kid in contents.keys) for row in contents.key_rows]
    columns = ("kid", "alg", "state", "published_at", "activated_at", "retired_at", "then")
    print_records(records, columns, output)


@key.command()
@output_option
@click.pass_context
@example("authserver key rotate")
def rotate(ctx: click.Context, output: str) -> None:
    """Make the next signing key now. It signs as soon as every reader of the key set knows it.

    That is after 7 minutes, the 5 that a reader may keep the key set and 2 for clocks and polls. No token is refused
    meanwhile, so there is no way to hasten it; a key that somebody else may have is for `key revoke`.
    """
    with open_installation(ctx) as installation:
        rotation = installation.rotation(installation.admin.actor)
        with installation.database.write() as session:
            record = _record(rotation.publish(session), rotation.policy, opens=True)
    print_record(record, output)


@key.command(context_settings=TAKES_A_KEY)
@click.argument("kid")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver key revoke KID --yes")
def revoke(ctx: click.Context, kid: str, yes: bool, output: str) -> None:
    """Drop a signing key at once, and every token that it signed. For a key that somebody else may have.

    The resource servers refuse these tokens with their next poll, within seconds. Other readers of the key set may
    keep it for 5 minutes. If it was the active key, another one signs at once.
    """
    with open_installation(ctx) as installation:
        rotation = installation.rotation(installation.admin.actor)
        with installation.database.read() as session:
            row = session.get(SigningKeyRow, kid)
        if row is None:
            raise Refused(f"There is no key {kid}. List them with: authserver key list")
        dying = _dying(row, rotation)
        confirm(f"Revoke the key {kid}? What dies: {dying}.", yes=yes)
        with installation.database.write() as session:
            rotation.revoke(session, kid)
        active = installation.keys().signing_key.kid
    print_record({"kid": kid, "revoked": True, "tokens": dying, "active": active}, output)
    if row.state == "active":
        click.echo(
            "If who has it may have read the database too: authserver key list, and revoke the others.", err=True
        )


def _dying(row: SigningKeyRow, rotation: Rotation) -> str:
    """Say which tokens a key has signed, and how long they would have lived."""
    if row.activated_at is None:
        return "no token, it has signed none"
    last = row.retired_at if row.retired_at is not None else int(rotation.clock())
    until = iso_time(last + rotation.policy.lifetime)
    return f"every token issued from {iso_time(row.activated_at)} to {iso_time(last)}, valid until {until} at most"


@key.command()
@click.option("--prepare", is_flag=True, help="Only make the new sealing key, to be given to every node first.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver key reseal --prepare\nauthserver key reseal --yes")
def reseal(ctx: click.Context, prepare: bool, yes: bool, output: str) -> None:
    """Seal the signing keys and peppers with another sealing key. Secrets, tokens and keys stay what they are.

    \b
    One node, with the key in a file: run it. Running servers follow by themselves.
    Several nodes, with the key in files:
      1. authserver key reseal --prepare; copy sealing.key.next into AUTHSERVER_KEYS_DIR of every node
      2. authserver key reseal, on one node
      3. mv sealing.key.next sealing.key, on every other node
    With the key in AUTHSERVER_SEALING_KEY:
      1. authserver key reseal --prepare prints a new key
      2. AUTHSERVER_SEALING_KEY=OLD,NEW on every node, and restart
      3. authserver key reseal, with the same variable
      4. AUTHSERVER_SEALING_KEY=NEW on every node, and restart

    Killed half-way, it is ended by repeating it. Backups made before need the old sealing key: keep it with them.
    """  # noqa: D301 - click reads the control character
    with open_installation(ctx) as installation:
        settings = installation.settings
        # Lost, it is reported with its remediation before anything else is tried.
        installation.sealing_key()
        if prepare:
            if settings.sealing_key is not None:
                print_record({"next_sealing_key": generate_sealing_key()}, output)
                return
            made = resealing.prepare(settings)
            path = str(settings.keys_dir / NEXT_FILE_NAME)
            print_record({"next_sealing_key": path, "outcome": "created" if made else "present"}, output)
            return
        confirm("Replace the sealing key? Backups made before open with the old one only.", yes=yes)
        done = resealing.reseal(settings, installation.database, installation.admin)
    where = "the second key in AUTHSERVER_SEALING_KEY" if settings.sealing_key else str(settings.keys_dir / FILE_NAME)
    record = {"sealing_key": where, "signing_keys": done.signing_keys, "peppers": done.peppers, "left": list(done.left)}
    print_record(record, output)
    if done.left:
        click.echo("What is left did not open before either. See: authserver key list", err=True)
