"""`authserver client secret`: what a client proves itself by, where it has no key."""

import click

from gatehouse.authserver.cli.client_record import WITHIN_A_SECOND, print_secret
from gatehouse.authserver.cli.grace_period import (
    LIFETIME_COLUMNS,
    grace_period_option,
    lifetime_record,
    note_grace_period,
)
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.credentials.client_secrets import ListedSecret, list_secrets, revoke_secret, rotate_secret
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_records


@click.group()
@example("authserver client secret rotate agent_0123456789abcdef0123 --grace-period 7d")
def secret() -> None:
    """Secrets: made here, shown once, kept as digests. At most two of a client are live."""


@secret.command()
@click.argument("client_id")
@grace_period_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example(
    "authserver client secret rotate agent_0123456789abcdef0123 --grace-period 7d\n"
    "authserver client secret rotate agent_0123456789abcdef0123 --yes"
)
def rotate(ctx: click.Context, client_id: str, grace_period: int, yes: bool, output: str) -> None:
    """Give a client a new secret. Without --grace-period, every old one is refused within one second."""
    if not grace_period:
        confirm(f"Replace the secret of {client_id}? The old one stops working.", yes=yes)
    with open_installation(ctx) as installation:
        keys, admin = installation.keys(), installation.admin
        with installation.database.write() as session:
            changed, client_secret = rotate_secret(session, admin, keys, client_id, grace_period)
            known = list_secrets(session, client_id)
            # Before the transaction ends: where nobody reads the new secret, the old one stays.
            print_secret(changed, admin.now(), output, client_secret)
    note_grace_period((f"The secret that begins with {old.prefix}", old.lifetime) for old in known)
    if not grace_period:
        click.echo(WITHIN_A_SECOND, err=True)


@secret.command()
@click.argument("client_id")
@click.argument("secret")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver client secret revoke agent_0123456789abcdef0123 sec_0123456789abcdef --yes")
def revoke(ctx: click.Context, client_id: str, secret: str, yes: bool, output: str) -> None:
    """End one of two secrets, named by its id or by its prefix, and list what is left."""
    confirm(f"End a secret of {client_id}? Who uses it is refused.", yes=yes)
    with open_installation(ctx) as installation:
        with installation.database.write() as session:
            revoke_secret(session, installation.admin, client_id, secret)
            known = list_secrets(session, client_id)
        _print(known, installation.admin.now(), output)
    click.echo(WITHIN_A_SECOND, err=True)


@secret.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client secret list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the secrets of a client: how each begins, when it was made and last used, until when it is accepted.

    The last use is some two minutes old at most. Of those that are over, the last two are shown for 30 days.
    """
    with open_installation(ctx) as installation, installation.database.read() as session:
        _print(list_secrets(session, client_id), installation.admin.now(), output)


def _print(known: list[ListedSecret], now: int, output: str) -> None:
    records = [
        {"secret_id": secret.secret_id, "prefix": secret.prefix, **lifetime_record(secret.lifetime, now)}
        for secret in known
    ]
    print_records(records, ("secret_id", "prefix", *LIFETIME_COLUMNS), output)
