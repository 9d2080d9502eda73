"""`resourceserver init`: the key files, and the tables of the gateway and of its catalogue."""

from pathlib import Path

import click

from gatehouse.resourceserver.cli.catalogue_loading import load_schema, load_served
from gatehouse.resourceserver.cli.installation import served_options, settings_of
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.upstream.caller_identity import create_caller_keys
from gatehouse.resourceserver.upstream.http.session_key import create_session_key
from gatehouse.shared.service.audit.keys import create_audit_keys
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.output import print_record


@click.command()
@served_options
@output_option
@click.pass_context
@example("resourceserver init\nresourceserver init --tools mypackage.mytools")
def init(ctx: click.Context, tools: str | None, upstream: Path | None, output: str) -> None:
    """Create the key files, and create or upgrade the gateway's tables and those of the catalogue. Safe to repeat."""
    settings = settings_of(ctx, tools=tools, upstream=upstream)
    with Database(settings.database, load_schema(load_served(settings))) as database:
        database.migrate()
    created = create_audit_keys(settings.audit_keys)
    create_session_key(settings.session_key)
    create_caller_keys(settings.caller_keys)
    print_record(
        {
            "resource": settings.resource,
            "issuer": settings.issuer,
            "database": shown_url(settings.database),
            "audit_keys": "created" if created else "present",
        },
        output,
    )
