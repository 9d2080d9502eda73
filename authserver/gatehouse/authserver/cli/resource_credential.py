"""`authserver resource credential`: what a resource asks about tokens with."""

from typing import Any

import click

from gatehouse.authserver.cli.client_record import shown_once
from gatehouse.authserver.cli.grace_period import grace_period_option, lifetime_record
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.credentials.resource_credentials import (
    ResourceCredential,
    create_credential,
    list_credentials,
    revoke_credential,
    rotate_credential,
)
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_record, print_records


@click.group()
@example("authserver resource credential create https://mcp.example.com/mcp")
def credential() -> None:
    """Credentials for introspection: made here, shown once, kept as digests. They obtain no token."""


def _record(known: ResourceCredential, now: int) -> dict[str, Any]:
    life = lifetime_record(known.lifetime, now)
    # Only those that are accepted are listed.
    del life["state"]
    return {"credential_id": known.credential_id, "resource": known.resource, "prefix": known.prefix, **life}


def _print_once(created: ResourceCredential, secret: str, now: int, output: str) -> None:
    with shown_once("secret", output):
        record = _record(created, now)
        print_record({"credential_id": record.pop("credential_id"), "secret": secret, **record}, output)


@credential.command()
@click.argument("url")
@output_option
@click.pass_context
@example("authserver resource credential create https://mcp.example.com/mcp")
def create(ctx: click.Context, url: str, output: str) -> None:
    """Give the resource URL a credential to ask with whether tokens for it are live."""
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            created, secret = create_credential(session, installation.admin, keys, url)
            _print_once(created, secret, installation.admin.now(), output)


@credential.command()
@click.argument("credential_id")
@grace_period_option
@output_option
@click.pass_context
@example("authserver resource credential rotate rsc_0123456789abcdef --grace-period 1d")
def rotate(ctx: click.Context, credential_id: str, grace_period: int, output: str) -> None:
    """Replace a credential by a new one. The old one is refused after the grace_period, and within one second of it."""
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            created, secret = rotate_credential(session, installation.admin, keys, credential_id, grace_period)
            _print_once(created, secret, installation.admin.now(), output)


@credential.command()
@click.argument("credential_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@output_option
@click.pass_context
@example("authserver resource credential revoke rsc_0123456789abcdef --yes")
def revoke(ctx: click.Context, credential_id: str, yes: bool, output: str) -> None:
    """End a credential within one second, and list what is left. A resource can do without."""
    confirm(f"End the credential {credential_id}? Who asks with it is refused.", yes=yes)
    with open_installation(ctx) as installation:
        with installation.database.write() as session:
            revoke_credential(session, installation.admin, credential_id)
            known = list_credentials(session, installation.admin.now())
        _print(known, installation.admin.now(), output)


@credential.command("list")
@output_option
@click.pass_context
@example("authserver resource credential list")
def list_(ctx: click.Context, output: str) -> None:
    """List the credentials that are accepted: whose they are, how each begins, when it was made and last used."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        now = installation.admin.now()
        _print(list_credentials(session, now), now, output)


def _print(known: list[ResourceCredential], now: int, output: str) -> None:
    columns = ("credential_id", "resource", "prefix", "created_at", "last_used_at", "expires_at")
    print_records([_record(one, now) for one in known], columns, output)
