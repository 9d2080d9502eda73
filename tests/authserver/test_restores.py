"""A database that was restored from a backup: the start and `check` refuse it until an admin accepts it."""

import errno
import json
import logging
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select, update
from support.authserver import AuthServer, administrator
from support.keys import rotation_of
from support.shell import CREATE, Shell
from support.transfer import FullInstallation, export_of, import_into

from gatehouse.authserver.backup.restores import Restore, RestoreMark, accept_restore
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SigningKeyRow, UnacceptedRestoreRow, audit_event, audit_tables
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.audit.pruning import prune_audit
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


def prune(server: AuthServer) -> None:
    """Register a client an hour later, and delete all events before."""
    server.clock.advance(3600)
    server.create_client()
    keys = AuditKeys.read(server.settings.audit_keys)
    with closing(Database(server.settings.database)) as database:
        prune_audit(database.engine, audit_tables, keys, before=server.clock() - 60, clock=server.clock)


def count_events(server: AuthServer) -> int:
    with server.services.database.read() as session:
        return session.scalars(select(func.count()).select_from(audit_event)).one()


def change_mark(mark: RestoreMark, **members: object) -> RestoreMark:
    """Change members of the file."""
    mark.path.write_text(json.dumps({**json.loads(mark.path.read_bytes()), **members}))
    return mark


@pytest.mark.both_databases
def test_events_that_were_pruned_later_are_no_restore(authserver: AuthServer) -> None:
    mark = write_mark(authserver)
    prune(authserver)
    assert count_events(authserver) == 2, "those of the newest client"
    assert mark.find_restore() is None
    seen = mark.path.read_bytes()
    mark.update()
    assert mark.path.read_bytes() != seen


def test_evidence_that_pruning_keeps_does_not_stop_a_node(authserver: AuthServer) -> None:
    authserver.create_client()
    lose_newest_event(authserver)
    # The next event of this chain has a gap before it, and stays.
    authserver.create_client()
    authserver.admin = administrator(authserver.settings, authserver.clock)
    mark = write_mark(authserver)
    prune(authserver)
    assert count_events(authserver) == 4
    assert mark.find_restore() is None


@pytest.mark.threat("T-148")
@pytest.mark.both_databases
def test_a_backup_that_was_pruned_before_is_a_restore(authserver: AuthServer) -> None:
    prune(authserver)
    mark = write_mark(authserver)
    assert mark.find_restore() is None
    # As after `init` of an empty database, into which the backup was restored later.
    assert change_mark(mark, event=1, writer="another", sequence=1).find_restore() is not None


@pytest.mark.threat("T-148")
@pytest.mark.parametrize("altered", [False, True])
def test_only_an_authentic_boundary_explains_a_missing_event(authserver: AuthServer, altered: bool) -> None:
    mark = write_mark(authserver)
    prune(authserver)
    checkpoint = audit_tables.checkpoints
    if altered:
        with authserver.services.database.write() as session:
            session.execute(update(checkpoint).values(content=checkpoint.c.content + " "))
    assert (mark.find_restore() is not None) == altered


@pytest.mark.threat("T-148")
@pytest.mark.parametrize("member", ["event", "sequence"])
def test_an_event_after_the_pruned_ones_was_not_pruned(authserver: AuthServer, member: str) -> None:
    mark = write_mark(authserver)
    prune(authserver)
    assert mark.find_restore() is None
    assert change_mark(mark, **{member: 1000}).find_restore() is not None


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


@pytest.mark.threat("T-148")
@pytest.mark.both_databases
@pytest.mark.parametrize("restored", [False, True])
def test_pruning_does_not_make_a_restore_forgotten(authserver: AuthServer, tmp_path: Path, restored: bool) -> None:
    """Source: review of issue 13. The event of the mark counts as pruned when all of its time were."""
    authserver.create_client()
    # Its events are a chain of their own, as those of a command.
    authserver.admin = administrator(authserver.settings, authserver.clock)
    mark = write_mark(authserver)
    authserver.admin = administrator(authserver.settings, authserver.clock)
    since = int(authserver.clock()) - 60
    if restored:
        lose_newest_event(authserver)
        lose_newest_event(authserver)
        for _ in range(2):
            mark.update()
    # SQLite assigns the lost ids again.
    authserver.create_client()
    prune(authserver)
    found = Restore(since, None) if restored else None
    assert (mark.find_restore() is not None) == restored
    other_node = authserver.settings.model_copy(update={"restore_mark": tmp_path / "no-mark.json"})
    assert RestoreMark(authserver.services.database, other_node).find_restore() == found
    rotation = rotation_of(authserver.services, authserver.clock)
    with authserver.services.database.write() as session:
        accept_restore(session, authserver.admin, rotation, None, disable_clients=False)
    mark.update()
    assert mark.find_restore() is None


@pytest.mark.threat("T-148")
def test_a_restore_is_not_noted_again_after_its_acceptance(
    authserver: AuthServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    mark = write_mark(authserver)
    lose_newest_event(authserver)
    rotation = rotation_of(authserver.services, authserver.clock)

    def accept_meanwhile(*_: object) -> None:
        with authserver.services.database.write() as session:
            accept_restore(session, authserver.admin, rotation, None, disable_clients=False)

    monkeypatch.setattr("gatehouse.authserver.backup.restores.log.error", accept_meanwhile)
    mark.update()
    with authserver.services.database.read() as session:
        assert session.scalars(select(UnacceptedRestoreRow)).all() == []


@pytest.mark.threat("T-148")
@pytest.mark.both_databases
def test_a_raised_id_does_not_become_the_mark(authserver: AuthServer) -> None:
    """Source: review of issue 13. No later event would replace it, so no later revocation would be missed."""
    mark = write_mark(authserver)
    with authserver.services.database.write() as session:
        session.execute(update(audit_event).where(select(func.min(ID)).scalar_subquery() == ID).values(id=10**18))
    mark.update()
    assert json.loads(mark.path.read_bytes())["event"] < 10**18


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


def test_a_database_without_events_has_no_mark(authserver: AuthServer) -> None:
    with authserver.services.database.write() as session:
        session.execute(delete(audit_event))
    mark = mark_of(authserver)
    mark.replace()
    assert not mark.path.exists()


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


def test_a_new_installation_replaces_the_mark(empty: Shell) -> None:
    empty.text("init")
    mark = empty.folder / "keys" / "restore-mark.json"
    first = mark.read_bytes()
    empty.text("init")
    assert mark.read_bytes() == first
    empty.database.unlink()
    empty.text("init")
    assert mark.read_bytes() != first
    assert {check["outcome"] for check in empty.json("check")} == {"ok"}


@pytest.mark.threat("T-148")
def test_a_pruned_backup_is_refused_after_init_of_an_empty_database(shell: Shell) -> None:
    shell.text(*CREATE)
    shell.text("audit", "prune", "--older-than", "0s", "--yes")
    file = database_of(shell)
    copy_database(file, shell.folder / "backup.db")
    shell.text("check")
    for name in file.parent.glob(f"{file.name}*"):
        name.unlink()
    shell.text("init")
    shell.text("check")
    copy_database(shell.folder / "backup.db", file)
    assert "The database was restored from a backup" in shell.run("check").stdout


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
    assert accepted.disabled_clients == (3 if disable_clients else 0)
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


def database_of(shell: Shell) -> Path:
    return Path(shell.environment["AUTHSERVER_DATABASE_URL"].removeprefix("sqlite:///"))


def copy_database(source: Path, target: Path) -> None:
    """Copy an SQLite database with what is in its -wal file."""
    for name in (target, *target.parent.glob(f"{target.name}-*")):
        name.unlink(missing_ok=True)
    with closing(sqlite3.connect(source)) as before, closing(sqlite3.connect(target)) as after:
        before.backup(after)


@pytest.mark.threat("T-148")
def test_a_restored_file_is_accepted_with_one_command(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    file = database_of(shell)
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
    assert "The database was restored from a backup" in shell.refusal("export", "moved.jsonl")
    [old] = [key["kid"] for key in shell.json("key", "list")]
    accepted = shell.run("restore", "accept", "--yes", "--disable-clients", "--output", "json")
    assert "The database was restored from a backup" in accepted.stderr
    assert json.loads(accepted.stdout)["revoked_keys"] == [old]
    assert json.loads(accepted.stdout)["disabled_clients"] == 1
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    assert shell.json("client", "show", client_id)["disabled"] is True
    shell.text("export", str(shell.folder / "moved.jsonl"))


def test_check_names_a_mark_beside_the_database(empty: Shell) -> None:
    empty.text("init")
    [restored] = [check for check in empty.json("check") if check["check"] == "restored backup"]
    assert restored["detail"].startswith("the database holds the newest event in ")
    empty.environment["AUTHSERVER_RESTORE_MARK"] = str(empty.database.parent / "mark.json")
    [restored] = [check for check in empty.json("check") if check["check"] == "restored backup"]
    assert "is in the folder of the database. A copy of the folder restores both" in restored["detail"]


def test_accepting_replaces_a_file_that_is_no_mark(shell: Shell) -> None:
    mark = shell.folder / "keys" / "restore-mark.json"
    mark.write_text("{}")
    assert "is not a restore mark" in shell.run("check").stdout
    shell.refusal("restore", "accept")
    assert mark.read_text() == "{}"
    shell.text("restore", "accept", "--yes")
    assert json.loads(mark.read_text()).keys() == {"event", "writer", "sequence", "time"}
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}


def test_accepting_replaces_a_mark_of_the_future(shell: Shell) -> None:
    """As a node with a wrong clock leaves it behind."""
    mark = shell.folder / "keys" / "restore-mark.json"
    mark.write_text(json.dumps({"event": 1000, "writer": "w", "sequence": 1, "time": 4102444800000}))
    assert "until 2100-01-01" in shell.run("check").stdout
    shell.text("restore", "accept", "--yes")
    assert json.loads(mark.read_bytes())["time"] < 4102444800000
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
