"""`authserver export` and `authserver import`: an installation on its way to another database."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import click

from gatehouse.authserver import maintenance
from gatehouse.authserver.administration import Refused
from gatehouse.authserver.backup.exporting import write_export
from gatehouse.authserver.backup.importing import import_installation
from gatehouse.authserver.backup.lines import Header
from gatehouse.authserver.backup.reading import ExportReader
from gatehouse.authserver.cli.installation import Installation, open_installation, settings_of
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import FILE_NAME, NEXT_FILE_NAME
from gatehouse.authserver.keys.sealed_keys import decrypt_rows
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditAction, AuditRows
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.files import new_file
from gatehouse.shared.service.migrations import newest_revision
from gatehouse.shared.service.output import print_record

_RUNNING = (
    "A server runs on this database, or did until a moment ago. What it does from now on is not in the export: tokens "
    "that it issues are refused where this is imported, and what it revokes is not known there. To move, stop it "
    "first."
)
_LEFT_OUT = (
    "Left out: signing keys, peppers, the secrets of clients and the credentials of resources. Where this is imported, "
    "tokens that are out are refused, every client with a secret needs authserver client secret rotate, and every "
    "resource that asks about tokens authserver resource credential create. To take them along: --with-keys"
)


@click.command("export")
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True))
@click.option("--with-keys", is_flag=True, help="Take signing keys, peppers and secrets along, sealed as they are.")
@click.option("--without-audit", is_flag=True, help="Leave the audit log out.")
@output_option
@click.pass_context
@example(
    "authserver export installation.jsonl\n"
    "authserver export installation.jsonl --with-keys\n"
    "authserver export - | gzip > installation.jsonl.gz"
)
def export(ctx: click.Context, file: str, with_keys: bool, without_audit: bool, output: str) -> None:
    """Write this installation to a new FILE, or to standard output (-), to be imported elsewhere.

    Private keys and secrets stay out of it, unless you ask for them: then they are in it as they are in the database,
    sealed. The sealing key is never in it.
    """
    with open_installation(ctx, patient=True) as installation:
        header = Header(
            schema=newest_revision(Database.schema) or "",
            issuer=installation.settings.issuer,
            created_at=installation.admin.now(),
            keys=with_keys,
            audit=not without_audit,
        )
        with _output(file) as target:
            _warn(installation, header)
            counts = write_export(
                installation.database, target, header, lambda counts: _record(installation, header, counts), _tell
            )
    record = {"file": file, "issuer": header.issuer, "keys": "sealed" if with_keys else "left out", "rows": counts}
    if file != "-":
        print_record(record, output)


@contextmanager
def _output(file: str) -> Iterator[BinaryIO]:
    if file == "-":
        yield sys.stdout.buffer
        return
    there = Refused(f"There is something at {file} already, which stays as it is. Name a new file.")
    # Said before the work, and by the file system once more after it.
    if os.path.lexists(file):
        raise there
    if not (folder := Path(file).parent).is_dir():
        raise Refused(f"There is no folder {folder}. Make it, or name a file in another one.")
    try:
        with new_file(Path(file)) as target:
            yield target
    except FileExistsError:
        raise there from None


def _warn(installation: Installation, header: Header) -> None:
    with installation.database.read() as session:
        running = maintenance.is_led(session, header.created_at)
    if running:
        click.echo(_RUNNING, err=True)
    click.echo(_carry(installation) if header.keys else _LEFT_OUT, err=True)


def _carry(installation: Installation) -> str:
    """Say what the keys of an export open with. Raises Refusal where they do not open even here."""
    settings = installation.settings
    with installation.database.read() as session:
        contents = decrypt_rows(session, installation.sealing_key(), settings.issuer)
    if contents.undecryptable_rows:
        closed = ", ".join(sorted(contents.undecryptable_rows))
        raise Refusal(
            f"These do not open with the sealing key that is here: {closed}. Nobody could import them. "
            "End them first (authserver key list, key revoke), or export without --with-keys."
        )
    files = [settings.keys_dir / name for name in (FILE_NAME, NEXT_FILE_NAME)]
    where = " and ".join(str(file) for file in files if file.exists())
    if settings.sealing_key is not None:
        where = "what is in AUTHSERVER_SEALING_KEY"
    return (
        "The keys and peppers in the export open with the sealing key only, which is not in it. "
        f"Carry {where} apart from it."
    )


def _record(installation: Installation, header: Header, counts: dict[str, int]) -> None:
    with installation.database.write() as session:
        installation.admin.record(
            session, AuditAction.INSTALLATION_EXPORT, header.issuer, keys=header.keys, audit=header.audit, rows=counts
        )


def _tell(table: str, done: int) -> None:
    click.echo(f"{table}: {done} rows", err=True)


@click.command("import")
@click.argument("file", type=click.File("rb"))
@output_option
@click.pass_context
@example("authserver import installation.jsonl && authserver serve")
def import_(ctx: click.Context, file: BinaryIO, output: str) -> None:
    """Make an empty database the installation in FILE, or on standard input (-): all of it, or nothing.

    It takes the place of init. The issuer has to be that of the export; if it holds keys, their sealing key has to be
    here. The file is trusted as the database itself is: take it from nobody else.
    """
    settings = settings_of(ctx)
    database = Database(settings.database, patient=True)
    admin = Administrator(AuditRows(audit_event))
    try:
        reader = ExportReader(file, settings.issuer)
        arrived = import_installation(settings, database, admin, reader, _tell)
        # Keys whose time is over by now sign nothing here either.
        Installation(settings, database, admin).rotation().run()
    except Refused as refused:
        raise Refusal(str(refused)) from None
    finally:
        database.close()
    record: dict[str, Any] = {
        "issuer": settings.issuer,
        "database": shown_url(settings.database),
        "signing_key": f"created {arrived.created[0]}" if arrived.created else "imported",
        "rows": arrived.rows,
    }
    print_record(record, output)
    if arrived.without_secret:
        command = "authserver client secret rotate CLIENT_ID"
        click.echo(f"Clients that need a new secret: {arrived.without_secret}. For each: {command}", err=True)
