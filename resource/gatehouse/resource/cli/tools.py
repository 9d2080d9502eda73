"""`resourceserver tools`: the catalogue."""

import json

import click

from gatehouse.resource.cli.installation import settings_of
from gatehouse.resource.tools import CATALOGUE
from gatehouse.shared.command_line import example, output_option, print_records


@click.command()
@output_option
@click.pass_context
@example("resourceserver tools\nresourceserver tools --output json > catalogue.json")
def tools(ctx: click.Context, output: str) -> None:
    """List every tool with the scopes that it needs. As JSON: the file for `authserver resource add --catalogue`."""
    document = CATALOGUE.document(settings_of(ctx).resource)
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
