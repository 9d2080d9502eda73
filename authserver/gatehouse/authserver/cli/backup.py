"""`authserver export` and `authserver import`: move an installation to another database."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from gatehouse.authserver import maintenance
from gatehouse.authserver.backup.exporting import write_export
from gatehouse.authserver.backup.format import Header
from gatehouse.authserver.backup.importing import ExportReader, import_installation
from gatehouse.authserver.backup.restores import RestoreMark
from gatehouse.authserver.cli.installation import Installation, open_installation, settings_of
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import FILE_NAME, NEXT_FILE_NAME
from gatehouse.authserver.keys.sealed_keys import decrypt_rows
from gatehouse.shared.service.administrator import CommandRefused, administrator
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.files import new_file
from gatehouse.shared.service.migrations import newest_revision
from gatehouse.shared.service.output import print_record, report_progress

_RUNNING = (
    "A server uses this database, or did until a moment ago. Its further changes are not in the export: tokens that it "
    "issues from now on will be refused after the import, and its revocations will be missing. So a server that uses "
    "the import will not start before: authserver restore accept. To move the installation, stop the server first."
)
_WITHOUT_KEYS = (
    "Omitted: signing keys, peppers, client secrets and resource credentials. After the import, tokens issued before "
    "are refused, every client with a secret needs authserver client secret rotate, and every resource that uses "
    "introspection needs authserver resource credential create. To include them: --with-keys"
)


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--with-keys", is_flag=True, help="Include the encrypted keys, and the digests of secrets.")
@click.option("--without-audit", is_flag=True, help="Omit the audit log.")
@output_option
@click.pass_context
@example(
    "authserver export installation.jsonl\n"
    "authserver export installation.jsonl --with-keys\n"
    "authserver export - | gzip > installation.jsonl.gz"
)
def export(ctx: click.Context, file: str, with_keys: bool, without_audit: bool, output: str) -> None:
    """Export this installation to a new FILE, or to standard output (-).

    Only --with-keys includes the signing keys, encrypted as in the database, and the digests of secrets. The sealing
    key is never included.
    """
    with open_installation(ctx, patient=True) as installation:
        if installation.database.is_ahead:
            raise CommandRefused(
                "The next version has migrated the database, and this version would leave out what it added. Export "
                "with that version."
            )
        # The export would be imported as one that lacks nothing.
        RestoreMark(installation.database, installation.settings).require_no_restore()
        header = Header(
            schema=newest_revision(Database.schema) or "",
            issuer=installation.settings.issuer,
            created_at=installation.admin.now(),
            keys=with_keys,
            audit=not without_audit,
            in_use=_is_in_use(installation),
        )
        with _output(file) as target:
            _warn(installation, header)
            counts = write_export(
                installation.database,
                target,
                header,
                lambda counts: _record(installation, header, counts),
                report_progress,
            )
    summary = {"file": file, "issuer": header.issuer, "keys": "sealed" if with_keys else "omitted", "rows": counts}
    if file != "-":
        print_record(summary, output)


@contextmanager
def _output(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdout.buffer
        return
    exists = CommandRefused(f"{file} already exists, and was not changed. Name a new file.")
    # Checked before the work, and by the file system again after it.
    if os.path.lexists(file):
        raise exists
    if not (folder := Path(file).parent).is_dir():
        raise CommandRefused(f"There is no folder {folder}. Create it, or name a file in another one.")
    try:
        with new_file(Path(file)) as target:
            yield target
    except FileExistsError:
        raise exists from None


def _is_in_use(installation: Installation) -> bool:
    with installation.database.read() as session:
        return maintenance.has_leader(session, installation.admin.now())


def _warn(installation: Installation, header: Header) -> None:
    if header.in_use:
        click.echo(_RUNNING, err=True)
    click.echo(_key_notice(installation) if header.keys else _WITHOUT_KEYS, err=True)


def _key_notice(installation: Installation) -> str:
    """Say which sealing key the export needs. Raises Refusal if its keys do not decrypt with the current one."""
    settings = installation.settings
    with installation.database.read() as session:
        decrypted = decrypt_rows(session, installation.sealing_key(), settings.issuer)
    if decrypted.undecryptable_rows:
        names = ", ".join(sorted(decrypted.undecryptable_rows))
        raise Refusal(
            f"These do not decrypt with the sealing key: {names}. They could not be imported. Remove them first "
            "(authserver key list, key revoke), or export without --with-keys."
        )
    files = [settings.keys_dir / name for name in (FILE_NAME, NEXT_FILE_NAME)]
    where = " and ".join(str(file) for file in files if file.exists())
    if settings.sealing_key is not None:
        where = "the value of AUTHSERVER_SEALING_KEY"
    return (
        "The keys and peppers in the export decrypt only with the sealing key, which is not in it. "
        f"Transfer {where} separately."
    )


def _record(installation: Installation, header: Header, counts: dict[str, int]) -> None:
    with installation.database.write() as session:
        installation.admin.record(
            session, AuditAction.INSTALLATION_EXPORT, header.issuer, keys=header.keys, audit=header.audit, rows=counts
        )


@click.command("import")
@click.argument("file", type=click.File("rb"))
@output_option
@click.pass_context
@example("authserver import installation.jsonl && authserver serve")
def import_(ctx: click.Context, file: BinaryIO, output: str) -> None:
    """Import the installation in FILE, or from standard input (-), into an empty database.

    Use it instead of authserver init. AUTHSERVER_ISSUER must be the issuer of the export. If the export holds keys,
    their sealing key must be present. Only import files that you trust as much as the database: a file can define any
    client.

    An export that was made while a server used the installation is a backup: what was revoked later is not in it. No
    server starts with it before: authserver restore accept
    """
    settings = settings_of(ctx)
    database = Database(settings.database, patient=True)
    admin = administrator(audit_event, settings.audit_keys)
    try:
        reader = ExportReader(file, settings.issuer)
        imported = import_installation(settings, database, admin, reader, report_progress)
        # Keys past their time do not sign here either.
        Installation(settings, database, admin).rotation().run()
        restore = RestoreMark(database, settings).find_restore()
    except CommandRefused as refused:
        raise Refusal(str(refused)) from None
    finally:
        database.close()
    record: dict[str, Any] = {
        "issuer": settings.issuer,
        "database": shown_url(settings.database),
        "signing_key": f"created {imported.created[0]}" if imported.created else "imported",
        "rows": imported.rows,
    }
    print_record(record, output)
    if restore is not None:
        click.echo(str(restore), err=True)
    if imported.without_secret:
        command = "authserver client secret rotate CLIENT_ID"
        click.echo(f"Clients that need a new secret: {imported.without_secret}. For each: {command}", err=True)
