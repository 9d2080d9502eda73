"""`authserver resource credential`: the credentials that resources use at the introspection endpoint."""

from functools import partial
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.credentials import (
    grace_period_option,
    lifetime_record,
    list_credentials,
    revoke_credential,
    shown_once,
)
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.credentials import resource_credentials
from gatehouse.authserver.credentials.resource_credentials import ResourceCredential
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_record

_COLUMNS = ("credential_id", "resource", "prefix", "created_at", "last_used_at", "expires_at")


def _record(known: ResourceCredential, now: int) -> dict[str, Any]:
    lifetime = lifetime_record(known.lifetime, now)
    # Every listed credential is active.
    del lifetime["state"]
    return {"credential_id": known.credential_id, "resource": known.resource, "prefix": known.prefix, **lifetime}


def _listing(session: Session, now: int) -> list[dict[str, Any]]:
    return [_record(known, now) for known in resource_credentials.list_credentials(session, now)]


def _print_once(created: ResourceCredential, secret: str, now: int, output: str) -> None:
    with shown_once("secret", output):
        record = _record(created, now)
        print_record({"credential_id": record.pop("credential_id"), "secret": secret, **record}, output)


@click.group()
@example("authserver resource credential create https://mcp.example.com/mcp")
def credential() -> None:
    """Manage the credentials of resources for introspection.

    Each is generated, shown once and stored as a digest. They cannot obtain tokens.
    """


@credential.command()
@click.argument("url")
@output_option
@click.pass_context
@example("authserver resource credential create https://mcp.example.com/mcp")
def create(ctx: click.Context, url: str, output: str) -> None:
    """Create a credential for introspection.

    With it, the resource at URL can ask the authorization server about its own tokens.
    """
    with open_installation(ctx) as installation:
        keys = installation.keys()
        with installation.database.write() as session:
            created, secret = resource_credentials.create_credential(session, installation.admin, keys, url)
            _print_once(created, secret, installation.admin.now(), output)


@credential.command("list")
@output_option
@click.pass_context
@example("authserver resource credential list")
def list_(ctx: click.Context, output: str) -> None:
    """List the active credentials of all resources."""
    list_credentials(ctx, _listing, _COLUMNS, output)


@credential.command()
@click.argument("credential_id")
@grace_period_option
@output_option
@click.pass_context
@example("authserver resource credential rotate rsc_0123456789abcdef --grace-period 1d")
def rotate(ctx: click.Context, credential_id: str, grace_period: int, output: str) -> None:
    """Replace a credential with a new one. Without --grace-period, the old one is revoked at once."""
    with open_installation(ctx) as installation:
        keys, admin = installation.keys(), installation.admin
        with installation.database.write() as session:
            created, secret = resource_credentials.rotate_credential(session, admin, keys, credential_id, grace_period)
            _print_once(created, secret, admin.now(), output)


@credential.command()
@click.argument("credential_id")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver resource credential revoke rsc_0123456789abcdef --yes")
def revoke(ctx: click.Context, credential_id: str, yes: bool, output: str) -> None:
    """Revoke a credential within one second, and list the others.

    You can revoke the last one: a resource needs a credential only for introspection.
    """
    confirm(f"Revoke the credential {credential_id}? Requests that use it are rejected.", yes=yes)
    change = partial(resource_credentials.revoke_credential, credential_id=credential_id)
    revoke_credential(ctx, change, _listing, _COLUMNS, output)
