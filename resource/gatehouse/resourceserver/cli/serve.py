"""`resourceserver init` and `resourceserver serve`."""

import click

from gatehouse.resourceserver.app import baseline_scopes, create_app
from gatehouse.resourceserver.cli.catalogue_loading import load_catalogue
from gatehouse.resourceserver.cli.installation import open_database, settings_of, tools_option
from gatehouse.resourceserver.db.database import Database
from gatehouse.shared.service.cli import example, output_option, print_record
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.gunicorn import Server
from gatehouse.shared.service.logs import configure_logs


@click.command()
@tools_option
@output_option
@click.pass_context
@example("resourceserver init\nresourceserver init --tools mypackage.mytools")
def init(ctx: click.Context, tools_module: str | None, output: str) -> None:
    """Create or upgrade the database: the gateway's tables and those of the catalogue. Safe to repeat."""
    settings = settings_of(ctx, tools_module)
    database = Database(settings.database, load_catalogue(settings.tools).load_schema())
    try:
        database.migrate()
    finally:
        database.close()
    print_record(
        {
            "resource": settings.resource,
            "issuer": settings.issuer,
            "database": shown_url(settings.database),
        },
        output,
    )


@click.command()
@tools_option
@click.pass_context
@example("RESOURCESERVER_WORKERS=4 resourceserver serve\nresourceserver serve --tools mypackage.mytools")
def serve(ctx: click.Context, tools_module: str | None) -> None:
    """Serve until SIGTERM or Ctrl-C. May start before the authorization server: it becomes ready by itself."""
    settings = settings_of(ctx, tools_module)
    configure_logs(settings.log_format, settings.log_level)
    # Before the fork: a catalogue that cannot be served stops the start, and not one worker after the other.
    catalogue = load_catalogue(settings.tools)
    baseline_scopes(settings, catalogue)
    with open_database(settings, catalogue.load_schema()):
        pass
    Server(
        name="resourceserver",
        bind=settings.bind,
        workers=settings.workers,
        worker_class="asgi",
        create_app=lambda: create_app(settings, catalogue),
    ).run()
