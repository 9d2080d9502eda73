"""`authserver init` and `authserver serve`."""

import click

from gatehouse.authserver.administration import Administrator
from gatehouse.authserver.app import close_app, create_app
from gatehouse.authserver.cli.session import admin_session, settings_of
from gatehouse.authserver.keys.sealing import create_sealing_key, load_sealing_key
from gatehouse.authserver.keys.store import ensure_keys
from gatehouse.authserver.store.database import Database
from gatehouse.authserver.store.models import audit_event
from gatehouse.shared.audit import AuditWriter
from gatehouse.shared.clock import system_clock
from gatehouse.shared.command_line import example, output_option, print_record
from gatehouse.shared.logs import configure_logs
from gatehouse.shared.serving import Server


@click.command()
@output_option
@click.pass_context
@example("authserver init")
def init(ctx: click.Context, output: str) -> None:
    """Prepare this installation: sealing key, database schema, signing key. Safe to repeat."""
    settings = settings_of(ctx)
    created_key_file = create_sealing_key(settings)
    sealing_key = load_sealing_key(settings)
    database = Database(settings.database, pool_size=1)
    try:
        database.migrate()
        admin = Administrator(AuditWriter(database.engine, audit_event))
        with database.write() as session:
            kids = ensure_keys(session, sealing_key, settings.issuer, settings.signing_algorithm, system_clock)
            for kid in kids:
                admin.record(session, "key.create", kid, alg=settings.signing_algorithm)
    finally:
        database.close()
    print_record(
        {
            "issuer": settings.issuer,
            "database": settings.database.render_as_string(hide_password=True),
            "sealing_key": "created" if created_key_file else "present",
            "signing_key": f"created {kids[0]}" if kids else "present",
        },
        output,
    )


@click.command()
@click.pass_context
@example("AUTHSERVER_WORKERS=4 authserver serve")
def serve(ctx: click.Context) -> None:
    """Serve until SIGTERM or Ctrl-C. Refuses to start on settings, schema or keys that cannot work."""
    settings = settings_of(ctx)
    configure_logs(settings.log_format, settings.log_level)
    with admin_session(ctx) as session:
        session.keys()
    Server(
        name="authserver",
        bind=settings.bind,
        workers=settings.workers,
        worker_class="gthread",
        threads=settings.threads,
        create_app=lambda: create_app(settings),
        close_app=close_app,
    ).run()
