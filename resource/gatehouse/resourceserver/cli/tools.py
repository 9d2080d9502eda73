"""`resourceserver tools`: prints the catalogue."""

import json

import click

from gatehouse.resourceserver.cli.catalogue_loading import load_catalogue
from gatehouse.resourceserver.cli.installation import settings_of, tools_option
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.output import print_records


@click.command()
@tools_option
@output_option
@click.pass_context
@example("resourceserver tools\nresourceserver tools --output json > catalogue.json")
def tools(ctx: click.Context, tools_module: str | None, output: str) -> None:
    """List every tool with the scopes that it needs. As JSON: the file for `authserver resource add --catalogue`."""
    settings = settings_of(ctx, tools_module)
    document = load_catalogue(settings.tools).document(settings.resource)
    if output == "json":
        click.echo(json.dumps(document, indent=2))
        return
    rows = [
        {
            "name": tool["name"],
            "scopes": tool["scopes"] or "(any valid token)",
            "streaming": tool["streaming"],
            "description": tool["description"].partition("\n")[0],
        }
        for tool in document["tools"]
    ]
    print_records(rows, ("name", "scopes", "streaming", "description"), output)
