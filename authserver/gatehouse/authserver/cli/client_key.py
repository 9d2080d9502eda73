"""`authserver client key`: what a client signs its assertions with; only the public halves are here."""

from pathlib import Path

import click

from gatehouse.authserver.cli.client_record import WITHIN_A_SECOND, key_records, print_client
from gatehouse.authserver.cli.grace_period import LIFETIME_COLUMNS, grace_period_option, note_grace_period
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.cli.key_files import ChosenKeys, key_file_options
from gatehouse.authserver.clients.lookup import existing_client
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials.client_keys import replace_keys, revoke_key
from gatehouse.shared.service.cli import TAKES_A_KEY, confirm, example, output_option
from gatehouse.shared.service.output import print_records


@click.group("key")
@example("authserver client key replace agent_0123456789abcdef0123 --jwks jwks.json --grace-period 7d")
def client_key() -> None:
    """Public keys of a client that authenticates by private_key_jwt. At most 8 are live."""


@client_key.command()
@click.argument("client_id")
@key_file_options
@grace_period_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example(
    "authserver client key replace agent_0123456789abcdef0123 --generate-key ci-agent-2.pem --grace-period 7d\n"
    "authserver client key replace agent_0123456789abcdef0123 --jwks jwks.json --yes"
)
def replace(
    ctx: click.Context,
    /,
    client_id: str,
    jwks: Path | None,
    generate_key: Path | None,
    grace_period: int,
    yes: bool,
    output: str,
) -> None:
    """Give a client the keys of a file, or a new one. Without --grace-period, every other is refused within one second.

    A key of the file that the client has already stays. One that is over is not taken again.
    """
    chosen = ChosenKeys.of(jwks, generate_key)
    if chosen.public is None:
        raise click.UsageError("Give --jwks FILE or --generate-key FILE.")
    if not grace_period:
        confirm(f"Replace the keys of {client_id}? The old ones stop working.", yes=yes)
    with open_installation(ctx) as installation:
        now = installation.admin.now()
        with chosen.written(), installation.database.write() as session:
            changed = replace_keys(session, installation.admin, client_id, chosen.public, grace_period)
    print_client(changed, now, output, **chosen.record())
    note_grace_period((f"The key {key.kid}", key.lifetime) for key in changed.keys)
    if not grace_period:
        click.echo(WITHIN_A_SECOND, err=True)


@client_key.command(context_settings=TAKES_A_KEY)
@click.argument("client_id")
@click.argument("key")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver client key revoke agent_0123456789abcdef0123 KID --yes")
def revoke(ctx: click.Context, client_id: str, key: str, yes: bool, output: str) -> None:
    """End one of several keys, named by its kid or how its thumbprint begins, and list what is left."""
    confirm(f"End a key of {client_id}? Who signs with it is refused.", yes=yes)
    with open_installation(ctx) as installation:
        with installation.database.write() as session:
            revoke_key(session, installation.admin, client_id, key)
            changed = existing_client(session, client_id)
        _print(changed, installation.admin.now(), output)
    click.echo(WITHIN_A_SECOND, err=True)


@client_key.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client key list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the keys of a client: when each was registered and last used, and until when it is accepted.

    The last use is some two minutes old at most. Of those that are over, the last 8 are shown for 30 days.
    """
    with open_installation(ctx) as installation, installation.database.read() as session:
        _print(existing_client(session, client_id), installation.admin.now(), output)


def _print(registered: Client, now: int, output: str) -> None:
    print_records(key_records(registered, now), ("kid", "thumbprint", "algs", *LIFETIME_COLUMNS), output)
