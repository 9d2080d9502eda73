"""`resourceserver tools`: prints the catalogue."""

import json
from pathlib import Path

import click

from gatehouse.resourceserver.cli.catalogue_loading import load_document
from gatehouse.resourceserver.cli.installation import served_options, settings_of
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.output import print_records


@click.command()
@served_options
@output_option
@click.pass_context
@example("resourceserver tools\nresourceserver tools --output json > catalogue.json")
def tools(ctx: click.Context, tools: str | None, upstream: Path | None, output: str) -> None:
    """List every tool with the scopes that it needs. As JSON: the file for `authserver resource add --catalogue`.

    With --upstream, the list is that of the policy file; `resourceserver policy check` compares it with the upstream.
    """
    settings = settings_of(ctx, tools=tools, upstream=upstream)
    document = load_document(settings)
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
