"""`authserver init`: sealing key, audit keys, database schema, signing key."""

import click

from gatehouse.authserver.backup.restores import RestoreMark
from gatehouse.authserver.cli.installation import Installation, settings_of
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import create_sealing_key, has_sealing_key, load_sealing_key, lost_sealing_key
from gatehouse.authserver.keys.sealed_keys import NoUsableKey, has_sealed_rows
from gatehouse.authserver.keys.store import ensure_keys
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.tokens.reservations import ensure_list
from gatehouse.shared.service.administrator import administrator
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.audit.keys import create_audit_keys
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.output import print_record


@click.command()
@output_option
@click.pass_context
@example("authserver init")
def init(ctx: click.Context, output: str) -> None:
    """Create the sealing key, an audit key and a signing key, and create or upgrade the database. Safe to repeat."""
    settings = settings_of(ctx)
    try:
        with Database(settings.database) as database:
            created_key_file, created_audit_keys, kids = _prepare(settings, database)
    except NoUsableKey as error:
        raise Refusal(str(error)) from None
    print_record(
        {
            "issuer": settings.issuer,
            "database": shown_url(settings.database),
            "sealing_key": "created" if created_key_file else "present",
            "audit_keys": "created" if created_audit_keys else "present",
            "signing_key": f"created {kids[0]}" if kids else "present",
        },
        output,
    )


def _prepare(settings: Settings, database: Database) -> tuple[bool, bool, list[str]]:
    """Return whether the file of the sealing key was created, that of the audit keys, and the kids of created keys."""
    database.migrate()
    with database.read() as session:
        sealed_before = has_sealed_rows(session)
    # A new sealing key could not decrypt the existing rows and would hide the loss.
    created_key_file = not sealed_before and create_sealing_key(settings)
    if sealed_before and not has_sealing_key(settings):
        raise lost_sealing_key(settings)
    sealing_key = load_sealing_key(settings)
    created_audit_keys = create_audit_keys(settings.audit_keys)
    admin = administrator(audit_event, settings.audit_keys)
    with database.write() as session:
        kids = ensure_keys(session, sealing_key, settings.issuer, settings.signing_algorithm, admin.clock)
        ensure_list(session.connection(), admin.now())
        for kid in kids:
            admin.record(session, AuditAction.KEY_CREATE, kid, alg=settings.signing_algorithm)
    if not sealed_before:
        # Without it, a backup that is restored into this database later would not be noticed.
        RestoreMark(database, settings).replace()
    Installation(settings, database, admin).rotation().run()
    return created_key_file, created_audit_keys, kids
