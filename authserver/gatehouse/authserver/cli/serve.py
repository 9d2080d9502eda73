"""`authserver serve`."""

from collections.abc import Callable
from typing import Any

import click

from gatehouse.authserver.app import create_app
from gatehouse.authserver.backup.restores import RestoreMark
from gatehouse.authserver.cli.installation import open_installation, settings_of
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.cli import example
from gatehouse.shared.service.gunicorn import Server


@click.command()
@click.pass_context
@example("AUTHSERVER_WORKERS=4 authserver serve")
def serve(ctx: click.Context) -> None:
    """Serve until SIGTERM or Ctrl-C. Does not start if settings, database schema or keys are unusable.

    Does not start with a database that was restored from a backup either, before: authserver restore accept

    The limits of requests are divided by the number of workers, unless AUTHSERVER_LIMITS_URL names a Redis or Valkey
    server where the workers of all nodes count together.
    """
    settings = settings_of(ctx)

    def prepare() -> Callable[[], Any]:
        with open_installation(ctx) as installation:
            RestoreMark(installation.database, settings).require_no_restore()
            installation.keys(to_sign=True)
        AuditKeys.read(settings.audit_keys)
        return lambda: create_app(settings)

    Server(name="authserver", settings=settings, prepare=prepare).run()
