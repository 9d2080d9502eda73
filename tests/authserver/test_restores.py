"""A database that was restored from a backup: the start and `check` refuse it until an admin accepts it."""

import errno
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update
from support.authserver import AuthServer
from support.keys import rotation_of
from support.shell import CREATE, Shell
from support.transfer import FullInstallation, export_of, import_into

from gatehouse.authserver.backup.restores import Restore, RestoreMark, accept_restore
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SigningKeyRow, UnacceptedRestoreRow, audit_event
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.database import parse_database_url

ID = audit_event.c.id


def mark_of(server: AuthServer) -> RestoreMark:
    """Return the mark as a process that has just started sees it."""
    return RestoreMark(server.services.database, server.settings)


def lose_newest_event(server: AuthServer) -> None:
    """Do to the audit log what restoring a backup does."""
    with server.services.database.write() as session:
        session.execute(delete(audit_event).where(select(func.max(ID)).scalar_subquery() == ID))


def write_mark(server: AuthServer) -> RestoreMark:
    """Register a client, and let a server see the event."""
    server.clock.advance(60)
    server.create_client()
    mark_of(server).update()
    return mark_of(server)


@pytest.mark.both_databases
def test_a_database_that_continues_is_no_restore(authserver: AuthServer) -> None:
    assert mark_of(authserver).find_restore() is None, "nothing was seen yet"
    mark = write_mark(authserver)
    assert mark.path.stat().st_mode & 0o777 == 0o600
    assert mark.find_restore() is None
    authserver.create_client()
    assert mark.find_restore() is None
    mark.update()
    newest = json.loads(mark.path.read_bytes())
    assert mark.find_restore() is None
    mark_of(authserver).update()
    assert json.loads(mark.path.read_bytes()) == newest, "another process of the node has nothing to add"


@pytest.mark.threat("T-148")
@pytest.mark.both_databases
def test_a_database_without_the_newest_event_is_refused(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    mark.require_no_restore()
    lose_newest_event(authserver)
    since = int(authserver.clock()) - 60
    assert mark.find_restore() == Restore(since, since + 60)
    with pytest.raises(CommandRefused, match=r"^The database was restored .* from 20.* until 20.*restore accept$"):
        mark.require_no_restore()


@pytest.mark.threat("T-148")
def test_another_event_in_the_place_of_the_newest_is_a_restore(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    lose_newest_event(authserver)
    authserver.create_client()
    assert mark.find_restore() is not None


def test_a_database_without_any_event_is_a_restore(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    with authserver.services.database.write() as session:
        session.execute(delete(audit_event))
    restore = mark.find_restore()
    assert restore == Restore(None, int(authserver.clock()))
    mark_of(authserver).update()
    assert mark.find_restore() == restore


def test_pruned_events_are_no_restore(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    authserver.create_client()
    with authserver.services.database.write() as session:
        newest = session.scalar(select(func.max(ID)))
        session.execute(update(audit_event).where(newest == ID).values(id=newest + 1))
        session.execute(delete(audit_event).where(newest >= ID))
    assert mark.find_restore() is None


def test_a_restore_under_a_running_server_is_logged_and_keeps_the_mark(
    authserver: AuthServer, caplog: pytest.LogCaptureFixture
) -> None:
    mark = write_mark(authserver)
    seen = mark.path.read_bytes()
    lose_newest_event(authserver)
    for _ in range(2):
        mark.update()
    assert mark.path.read_bytes() == seen
    assert [(record.levelno, record.message) for record in caplog.records] == [
        (
            logging.ERROR,
            "restore mark: the database lacks events that this node has seen: was it restored from a backup?",
        )
    ]


@pytest.mark.both_databases
def test_one_acceptance_is_enough_for_every_node(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    before = mark.path.read_bytes()
    lose_newest_event(authserver)
    authserver.clock.advance(1)
    rotation = rotation_of(authserver.services, authserver.clock)
    with authserver.services.database.write() as session:
        accept_restore(session, authserver.admin, rotation, mark.find_restore(), disable_clients=False)
    assert mark.find_restore() is None
    mark.update()
    assert mark.path.read_bytes() != before
    assert mark_of(authserver).find_restore() is None


@pytest.mark.parametrize(
    "document",
    [b"", b"[]", b'{"event": 1}', b'{"event": "1", "writer": "w", "sequence": 1, "time": 1}'],
    ids=["empty", "no-object", "incomplete", "wrong-type"],
)
def test_a_file_that_is_no_mark_stops_the_start(authserver: AuthServer, document: bytes) -> None:
    mark = write_mark(authserver)
    assert mark.find_restore() is None
    mark.path.write_bytes(document)
    with pytest.raises(CommandRefused, match="is not a restore mark"):
        mark.find_restore()


def test_a_mark_that_cannot_be_written_is_reported_once(
    authserver: AuthServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("gatehouse.authserver.backup.restores.replace_file", refuse)
    mark = mark_of(authserver)
    for _ in range(2):
        authserver.create_client()
        mark.update()
    [record] = caplog.records
    assert "cannot be written (Read-only file system): a restored backup would not be noticed" in record.message


def test_a_new_installation_forgets_the_mark_of_the_one_before(empty: Shell) -> None:
    empty.text("init")
    mark = empty.folder / "keys" / "restore-mark.json"
    mark.write_text("{}")
    empty.text("init")
    assert mark.exists()
    empty.database.unlink()
    empty.text("init")
    assert not mark.exists()
    [restored] = [check for check in empty.json("check") if check["check"] == "restored backup"]
    assert restored["detail"] == "no event seen yet"


@pytest.mark.threat("T-148")
@pytest.mark.both_databases
@pytest.mark.parametrize("disable_clients", [False, True])
def test_accepting_a_restore_revokes_every_token(authserver: AuthServer, disable_clients: bool) -> None:
    full = FullInstallation(authserver)
    assert full.is_active(full.token)
    rotation = rotation_of(authserver.services, authserver.clock)
    with authserver.services.database.write() as session:
        kids = set(session.scalars(select(SigningKeyRow.kid)))
        accepted = accept_restore(session, authserver.admin, rotation, None, disable_clients=disable_clients)
    assert set(accepted.revoked_keys) == kids
    assert accepted.disabled_clients == (2 if disable_clients else 0)
    authserver.clock.advance(2)
    assert not full.is_active(full.token)
    with authserver.services.database.read() as session:
        assert not kids & set(session.scalars(select(SigningKeyRow.kid)))
    response = full.issue()
    assert response.status_code == (401 if disable_clients else 200)
    [event] = authserver.audit(action="installation.restore")
    assert event["detail"] == {"disabled_clients": accepted.disabled_clients}


@pytest.mark.threat("T-148")
@pytest.mark.parametrize("in_use", [False, True])
def test_an_imported_backup_of_a_server_in_use_is_refused(authserver: AuthServer, tmp_path: Path, in_use: bool) -> None:
    document = export_of(authserver, keys=False, in_use=in_use)
    url = parse_database_url(f"sqlite:///{tmp_path}/restored.db")
    import_into(url, tmp_path, document, authserver.clock)
    settings = authserver.settings.model_copy(update={"keys_dir": tmp_path / "keys"})
    with Database(url) as database:
        restore = RestoreMark(database, settings).find_restore()
        with database.read() as session:
            assert bool(session.scalars(select(UnacceptedRestoreRow)).all()) == in_use
    assert restore == (Restore(int(authserver.clock()), None) if in_use else None)


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database with what is in its -wal file."""
    for name in (target, *target.parent.glob(f"{target.name}-*")):
        name.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as before, closing(sqlite3.connect(target)) as after:
        before.backup(after)


@pytest.mark.threat("T-148")
def test_a_restored_file_is_accepted_with_one_command(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    file = Path(shell.environment["AUTHSERVER_DATABASE_URL"].removeprefix("sqlite:///"))
    copy_database(file, shell.folder / "backup.db")
    shell.text("client", "disable", client_id)
    settings = Settings(database_url=f"sqlite:///{file}", keys_dir=shell.folder / "keys")
    with Database(settings.database) as database:
        RestoreMark(database, settings).update()
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    copy_database(shell.folder / "backup.db", file)
    shell.environment["AUTHSERVER_BIND"] = "127.0.0.1:0"
    assert "The database was restored from a backup" in shell.refusal("serve")
    checks = json.loads(shell.run("check", "--output", "json").stdout)
    [failed] = [check for check in checks if check["outcome"] != "ok"]
    assert failed["check"] == "restored backup"
    [old] = [key["kid"] for key in shell.json("key", "list")]
    accepted = shell.run("restore", "accept", "--yes", "--disable-clients", "--output", "json")
    assert "The database was restored from a backup" in accepted.stderr
    assert json.loads(accepted.stdout)["revoked_keys"] == [old]
    assert json.loads(accepted.stdout)["disabled_clients"] == 1
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    assert shell.json("client", "show", client_id)["disabled"] is True


def test_accepting_replaces_a_file_that_is_no_mark(shell: Shell) -> None:
    mark = shell.folder / "keys" / "restore-mark.json"
    mark.write_text("{}")
    assert "is not a restore mark" in shell.run("check").stdout
    shell.refusal("restore", "accept")
    assert mark.read_text() == "{}"
    shell.text("restore", "accept", "--yes")
    assert json.loads(mark.read_text()).keys() == {"event", "writer", "sequence", "time"}
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
