"""`authserver resource`: register resources and their scopes."""

from pathlib import Path
from typing import Any

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.resources.catalogue import parse_catalogue, parse_scope_option
from gatehouse.authserver.resources.registration import add_resource, parse_resource, remove_resource
from gatehouse.authserver.resources.registry import Resource, existing_resource, list_resources
from gatehouse.shared.service.cli import LazyGroup, confirm, example, output_option
from gatehouse.shared.service.output import print_record, print_records

_COMMANDS = {
    "credential": (
        "gatehouse.authserver.cli.resource_credential:credential",
        "Manage the credentials of a resource for introspection.",
    ),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
@example("authserver resource add https://mcp.example.com/mcp --name tools --catalogue catalogue.json")
def resource() -> None:
    """Resources: the MCP servers that tokens are issued for, and their scopes."""


def _record(registered: Resource) -> dict[str, Any]:
    return {
        "resource": registered.resource,
        "resource_name": registered.resource_name,
        "scopes_supported": sorted(registered.declared),
        "scopes": [
            {
                "scope": scope,
                "description": description,
                "implies": sorted(registered.hierarchy.implies.get(scope, ())),
                "declared": scope in registered.declared,
            }
            for scope, description in registered.scopes.items()
        ],
    }


@resource.command("add")
@click.argument("url")
@click.option("--name", required=True, help="Display name.")
@click.option("--scope", "scopes", multiple=True, metavar="NAME[=DESCRIPTION]", help="A scope; repeatable.")
@click.option(
    "--catalogue",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Read the scopes from the output of `resourceserver tools --output json`, or from a policy file (TOML).",
)
@output_option
@click.pass_context
@example(
    "authserver resource add https://mcp.example.com/mcp --name tools --scope 'env:read=See environments'\n"
    "authserver resource add https://mcp.example.com/mcp --name tools --catalogue catalogue.json\n"
    "authserver resource add https://mcp.example.com/mcp --name tools --catalogue policy.toml"
)
def add(ctx: click.Context, url: str, name: str, scopes: tuple[str, ...], catalogue: Path | None, output: str) -> None:
    """Register a resource, or update its name and scopes.

    The given scopes replace the declared ones. Clients keep grants of a scope that is no longer declared, but
    such a scope implies nothing and can no longer be granted. If the catalogue names a resource, it must be URL.
    """
    if bool(scopes) == bool(catalogue):
        raise click.UsageError("Use either --scope, once or more, or --catalogue.")
    with open_installation(ctx) as installation:
        if catalogue is None:
            declared = [parse_scope_option(text) for text in scopes]
        else:
            declared = list(parse_catalogue(catalogue.read_bytes(), url).scopes)
        with installation.database.write() as session:
            added = add_resource(session, installation.admin, url, name, declared)
    record = _record(added)
    if output == "table":
        del record["scopes"]
    print_record(record, output)
    if undeclared := sorted(added.scopes.keys() - added.declared):
        click.echo(
            f"No longer declared: {' '.join(undeclared)}. Clients keep their grants of these scopes, which imply "
            "nothing and can no longer be granted. See: authserver client list --output json",
            err=True,
        )


@resource.command("list")
@output_option
@click.pass_context
@example("authserver resource list --output json")
def list_(ctx: click.Context, output: str) -> None:
    """List the registered resources."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        records = [_record(registered) for registered in list_resources(session)]
    print_records(records, ("resource", "resource_name", "scopes_supported"), output)


@resource.command()
@click.argument("url")
@output_option
@click.pass_context
@example("authserver resource show https://mcp.example.com/mcp")
def show(ctx: click.Context, url: str, output: str) -> None:
    """Show a resource and its scopes with their descriptions."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        registered = existing_resource(session, parse_resource(url))
    record = _record(registered)
    if output == "json":
        print_record(record, output)
        return
    scopes = record.pop("scopes")
    print_record(record, output)
    print_records(scopes, ("scope", "declared", "implies", "description"), output)


@resource.command()
@click.argument("url")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver resource remove https://mcp.example.com/mcp --yes")
def remove(ctx: click.Context, url: str, yes: bool, output: str) -> None:
    """Remove a resource, its scopes, and every grant at it. Issued tokens stay valid until they expire."""
    confirm(f"Remove the resource {url}, and all grants at it?", yes=yes)
    with open_installation(ctx) as installation, installation.database.write() as session:
        clients = remove_resource(session, installation.admin, url)
    print_record({"resource": url, "removed": True, "clients": clients}, output)
