"""`authserver client secret`: the secrets of a client that authenticates with one."""

from functools import partial
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.client_record import print_client
from gatehouse.authserver.cli.credentials import (
    LIFETIME_COLUMNS,
    WITHIN_A_SECOND,
    grace_period_option,
    lifetime_record,
    list_credentials,
    note_grace_period,
    revoke_credential,
    shown_once,
)
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.credentials.client_secrets import list_secrets, revoke_secret, rotate_secret
from gatehouse.shared.service.cli import confirm, example, output_option

_COLUMNS = ("secret_id", "prefix", *LIFETIME_COLUMNS)


def _listing(client_id: str, session: Session, now: int) -> list[dict[str, Any]]:
    return [
        {"secret_id": secret.secret_id, "prefix": secret.prefix, **lifetime_record(secret.lifetime, now)}
        for secret in list_secrets(session, client_id)
    ]


@click.group()
@example("authserver client secret rotate agent_0123456789abcdef0123 --grace-period 7d")
def secret() -> None:
    """Client secrets. Each is generated, shown once and stored as a digest. A client has at most two active secrets."""


@secret.command("list")
@click.argument("client_id")
@output_option
@click.pass_context
@example("authserver client secret list agent_0123456789abcdef0123")
def list_(ctx: click.Context, client_id: str, output: str) -> None:
    """List the secrets of a client.

    The last use is up to two minutes out of date. The last two inactive secrets are listed for 30 days.
    """
    list_credentials(ctx, partial(_listing, client_id), _COLUMNS, output)


@secret.command()
@click.argument("client_id")
@grace_period_option
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example(
    "authserver client secret rotate agent_0123456789abcdef0123 --grace-period 7d\n"
    "authserver client secret rotate agent_0123456789abcdef0123 --yes"
)
def rotate(ctx: click.Context, client_id: str, grace_period: int, yes: bool, output: str) -> None:
    """Create a new secret for a client. Without --grace-period, the others are revoked at once."""
    if not grace_period:
        confirm(f"Rotate the secret of {client_id}? The present one stops working.", yes=yes)
    with open_installation(ctx) as installation:
        keys, admin = installation.keys(), installation.admin
        with installation.database.write() as session:
            changed, client_secret = rotate_secret(session, admin, keys, client_id, grace_period)
            known = list_secrets(session, client_id)
            # Before the transaction commits: if the new secret cannot be printed, the old one stays.
            with shown_once("client_secret", output):
                print_client(changed, admin.now(), output, client_secret=client_secret)
    note_grace_period((f"The secret that begins with {old.prefix}", old.lifetime) for old in known)
    if not grace_period:
        click.echo(WITHIN_A_SECOND, err=True)


@secret.command()
@click.argument("client_id")
@click.argument("secret")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver client secret revoke agent_0123456789abcdef0123 sec_0123456789abcdef --yes")
def revoke(ctx: click.Context, client_id: str, secret: str, yes: bool, output: str) -> None:
    """Revoke one secret of a client, and list the others.

    SECRET is the secret_id or the prefix, as listed by `client secret list`.
    """
    confirm(f"Revoke a secret of {client_id}? Requests that use it are rejected.", yes=yes)
    change = partial(revoke_secret, client_id=client_id, which=secret)
    revoke_credential(ctx, change, partial(_listing, client_id), _COLUMNS, output)
