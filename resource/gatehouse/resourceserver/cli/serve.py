"""`resourceserver serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gatehouse.resourceserver.app import create_app
from gatehouse.resourceserver.bearer.challenge import baseline_scopes
from gatehouse.resourceserver.cli.catalogue_loading import load_schema, load_served, read_resources
from gatehouse.resourceserver.cli.installation import open_database, served_options, settings_of
from gatehouse.resourceserver.settings import CA_FILE_SETTING
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.cli import example
from gatehouse.shared.service.gunicorn import Server
from gatehouse.shared.service.tls import tls_context


@click.command()
@served_options
@click.pass_context
@example("RESOURCESERVER_WORKERS=4 resourceserver serve\nresourceserver serve --tools mypackage.mytools")
def serve(ctx: click.Context, tools: str | None, upstream: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C. May start before the authorization server, and becomes ready once it answers.

    The limits of calls are divided by the number of workers, unless RESOURCESERVER_LIMITS_URL names a Redis or Valkey
    server where the workers of all nodes count together.
    """
    settings = settings_of(ctx, tools=tools, upstream=upstream)

    def prepare() -> Callable[[], Any]:
        # A catalogue that cannot be served stops the start here, not in each worker.
        catalogue = load_served(settings)
        baseline_scopes(settings, catalogue)
        read_resources(catalogue, settings.resource)
        with open_database(settings, load_schema(catalogue)):
            pass
        AuditKeys.read(settings.audit_keys)
        # Before the fork, so that the workers need not load the certificate authorities.
        tls_context(settings.ca_file, CA_FILE_SETTING)
        return lambda: create_app(settings, catalogue)

    Server(name="resourceserver", settings=settings, prepare=prepare).run()
