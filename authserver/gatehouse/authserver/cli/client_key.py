"""`authserver client key`: the public keys of a client that authenticates by private_key_jwt."""

from functools import partial
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.client_record import key_records, print_client
from gatehouse.authserver.cli.credentials import (
    LIFETIME_COLUMNS,
    WITHIN_A_SECOND,
    grace_period_option,
    list_credentials,
    note_grace_period,
    revoke_credential,
)
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.cli.key_files import ChosenKeys, key_file_options
from gatehouse.authserver.clients.registry import existing_client
from gatehouse.authserver.credentials.client_keys import revoke_key, rotate_keys
from gatehouse.shared.service.cli import TAKES_A_KEY, confirm, example, output_option

_COLUMNS = ("kid", "thumbprint", "algs", *LIFETIME_COLUMNS)


def _listing(client_id: str, session: Session, now: int) -> list[dict[str, Any]]:
    return key_records(existing_client(session, client_id), now)


@click.group("key")
@example("authserver client key rotate agent_0123456789abcdef0123 --jwks jwks.json --grace-period 7d")
def client_key() -> None:
    """Public keys of a client that authenticates by private_key_jwt. A client has at most 8 active keys."""


@client_key.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client key list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the keys of a client.

    The last use is up to two minutes out of date. The last 8 inactive keys are listed for 30 days.
    """
    list_credentials(ctx, partial(_listing, client_id), _COLUMNS, output)


@client_key.command()
@click.argument("client_id")
@key_file_options
@grace_period_option
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example(
    "authserver client key rotate agent_0123456789abcdef0123 --generate-key ci-agent-2.pem --grace-period 7d\n"
    "authserver client key rotate agent_0123456789abcdef0123 --jwks jwks.json --yes"
)
def rotate(
    ctx: click.Context,
    /,
    client_id: str,
    jwks: Path | None,
    generate_key: Path | None,
    grace_period: int,
    yes: bool,
    output: str,
) -> None:
    """Replace the keys of a client. Without --grace-period, its other keys are revoked at once.

    The new keys come from a file of public keys, or one is generated. Keys in the file that the client
    already has stay active. An inactive key cannot become active again.
    """
    chosen = ChosenKeys.of(jwks, generate_key)
    if chosen.public is None:
        raise click.UsageError("Give --jwks FILE or --generate-key FILE.")
    if not grace_period:
        confirm(f"Rotate the keys of {client_id}? The present ones stop working.", yes=yes)
    with open_installation(ctx) as installation:
        now = installation.admin.now()
        with chosen.written(), installation.database.write() as session:
            changed = rotate_keys(session, installation.admin, client_id, chosen.public, grace_period)
    print_client(changed, now, output, **chosen.record())
    chosen.note_ignored()
    note_grace_period((f"The key {key.kid}", key.lifetime) for key in changed.keys)
    if not grace_period:
        click.echo(WITHIN_A_SECOND, err=True)


@client_key.command(context_settings=TAKES_A_KEY)
@click.argument("client_id")
@click.argument("key")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver client key revoke agent_0123456789abcdef0123 KID --yes")
def revoke(ctx: click.Context, client_id: str, key: str, yes: bool, output: str) -> None:
    """Revoke one key of a client, and list the others.

    KEY is the kid, or the start of the thumbprint.
    """
    confirm(f"Revoke a key of {client_id}? Requests that use it are rejected.", yes=yes)
    change = partial(revoke_key, client_id=client_id, which=key)
    revoke_credential(ctx, change, partial(_listing, client_id), _COLUMNS, output)
