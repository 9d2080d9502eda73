"""`authserver export` and `authserver import`."""

import itertools
import json
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import URL
from support.kill_points import Job, run
from support.shell import CREATE, RESOURCE, Shell
from support.transfer import is_empty, rows_of

from gatehouse.authserver.cli import main
from gatehouse.authserver.db.database import Database
from gatehouse.shared.service.database import parse_database_url


@pytest.fixture
def elsewhere(tmp_path: Path, empty_database: URL) -> Shell:
    """A folder and an empty database without an installation."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return Shell(folder, empty_database.render_as_string(hide_password=False))


def copy_sealing_key(shell: Shell, elsewhere: Shell) -> None:
    (elsewhere.folder / "keys").mkdir(mode=0o700)
    target = elsewhere.folder / "keys" / "sealing.key"
    target.touch(mode=0o600)
    target.write_bytes((shell.folder / "keys" / "sealing.key").read_bytes())


@pytest.mark.threat("T-091")
@pytest.mark.both_databases
def test_an_installation_is_moved_with_two_commands(shell: Shell, elsewhere: Shell) -> None:
    created = shell.json(*CREATE)
    file = shell.folder / "installation.jsonl"
    exported = shell.run("export", str(file), "--with-keys", "--output", "json")
    assert json.loads(exported.stdout)["keys"] == "sealed"
    assert f"Transfer {shell.folder}/keys/sealing.key separately." in exported.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    copy_sealing_key(shell, elsewhere)
    imported = elsewhere.json("import", str(file))
    assert imported["signing_key"] == "imported"
    assert imported["rows"] == json.loads(exported.stdout)["rows"]
    assert elsewhere.json("check")[-1]["outcome"] == "ok"
    kids = [{key["kid"] for key in each.json("key", "list")} for each in (shell, elsewhere)]
    assert kids[0] <= kids[1], "an expired key is replaced"
    assert elsewhere.json("client", "list")[0]["client_id"] == created["client_id"]
    for installation, action in ((shell, "installation.export"), (elsewhere, "installation.import")):
        [event] = installation.json("audit", "--action", action)
        assert event["actor"].startswith("admin:")
        assert event["detail"]["rows"]["client"] == 1
        assert event["detail"]["keys"] is True


def test_an_import_without_keys_creates_keys_and_lists_next_steps(shell: Shell, elsewhere: Shell) -> None:
    created = shell.json(*CREATE)
    file = str(shell.folder / "installation.jsonl")
    exported = shell.run("export", file)
    assert "every client with a secret needs authserver client secret rotate" in exported.stderr
    imported = elsewhere.run("import", file)
    assert imported.exit_code == 0, imported.output
    assert "Clients that need a new secret: 1." in imported.stderr
    assert elsewhere.json("check")[-1]["outcome"] == "ok"
    assert elsewhere.json("key", "list")[0]["kid"] != shell.json("key", "list")[0]["kid"]
    assert elsewhere.json("client", "secret", "rotate", created["client_id"], "--yes")["client_secret"]


def test_an_export_can_be_piped(shell: Shell, elsewhere: Shell) -> None:
    shell.json(*CREATE)
    document = shell.run("export", "-", "--without-audit").stdout
    assert json.loads(document.partition("\n")[0])["audit"] is False
    imported = CliRunner().invoke(main, ["import", "-", "--output", "json"], input=document, env=elsewhere.environment)
    assert imported.exit_code == 0, imported.output
    assert [event["action"] for event in elsewhere.json("audit")] == ["installation.import", "key.create"]


def test_long_exports_and_imports_report_their_progress(
    shell: Shell, elsewhere: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gatehouse.shared.service.output.PROGRESS_EVERY", 1)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _: True, raising=False)
    file = str(shell.folder / "installation.jsonl")
    for done in (shell.run("export", file), elsewhere.run("import", file)):
        assert "1 resource\n" in done.stderr
        assert "1 resource\n" not in done.stdout


@pytest.mark.threat("T-091")
def test_no_file_is_overwritten_or_left_unfinished(shell: Shell, tmp_path: Path) -> None:
    file = tmp_path / "installation.jsonl"
    file.write_text("somebody's")
    assert "was not changed" in shell.refusal("export", str(file))
    assert file.read_text() == "somebody's"
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "nowhere")
    assert "was not changed" in shell.refusal("export", str(link))
    assert not (tmp_path / "nowhere").exists()
    refusal = shell.refusal("export", str(tmp_path / "no" / "folder"))
    assert refusal == f"Error: There is no folder {tmp_path / 'no'}. Create it, or name a file in another one.\n"
    shell.text("export", str(tmp_path / "new.jsonl"))
    assert not list(tmp_path.glob(".unfinished*"))


def test_an_export_warns_of_a_running_server(shell: Shell, tmp_path: Path) -> None:
    warned = "A server uses this database"
    assert warned not in shell.run("export", str(tmp_path / "1.jsonl")).stderr
    execute(shell, f"INSERT INTO lease VALUES ('maintenance', 'm_1', {int(time.time()) + 30})")
    assert warned in shell.run("export", str(tmp_path / "2.jsonl")).stderr
    execute(shell, "UPDATE lease SET expires_at = 0")
    assert warned not in shell.run("export", str(tmp_path / "3.jsonl")).stderr


def test_undecryptable_keys_are_not_exported(shell: Shell, tmp_path: Path) -> None:
    path = shell.folder / "keys" / "sealing.key"
    right = path.read_bytes()
    path.write_text("A" * 43)
    assert "do not decrypt with the sealing key" in shell.refusal("export", str(tmp_path / "1.jsonl"), "--with-keys")
    path.unlink()
    assert "there is none at" in shell.refusal("export", str(tmp_path / "1.jsonl"), "--with-keys")
    assert not (tmp_path / "1.jsonl").exists()
    shell.environment["AUTHSERVER_SEALING_KEY"] = right.decode().strip()
    assert "AUTHSERVER_SEALING_KEY separately" in shell.run("export", str(tmp_path / "1.jsonl"), "--with-keys").stderr


@pytest.mark.threat("T-096")
@pytest.mark.both_databases
@pytest.mark.parametrize("begun", ["init", "resource"])
def test_an_import_does_not_change_a_nonempty_database(shell: Shell, elsewhere: Shell, begun: str) -> None:
    shell.json(*CREATE)
    file = str(shell.folder / "installation.jsonl")
    shell.text("export", file, "--without-audit")
    elsewhere.text("init")
    if begun == "resource":
        elsewhere.text("resource", "add", "https://other.example.com/mcp", "--name", "other", "--scope", "read")
    execute(elsewhere, "UPDATE alembic_version SET version_num = '0000'")
    before = rows_of(_url_of(elsewhere))
    assert "is not empty" in elsewhere.refusal("import", file)
    assert rows_of(_url_of(elsewhere)) == before
    assert execute(elsewhere, "SELECT version_num FROM alembic_version") == "0000"


def test_an_invalid_file_creates_no_database(shell: Shell, tmp_path: Path) -> None:
    """An export from another issuer creates none either."""
    file = tmp_path / "installation.jsonl"
    shell.text("export", str(file))
    other = Shell(tmp_path / "other")
    other.environment["AUTHSERVER_ISSUER"] = "https://elsewhere.example.com"
    assert "set AUTHSERVER_ISSUER" in other.refusal("import", str(file))
    file.write_text('{"resource":"https://mcp.example.com/mcp"}\n')
    assert "is not the first line of an export" in other.refusal("import", str(file))
    assert not other.folder.exists()


@pytest.mark.threat("T-092")
@pytest.mark.both_databases
def test_a_killed_import_leaves_an_empty_database(empty: Shell, elsewhere: Shell) -> None:
    """The command is killed with SIGKILL, later each time, until one import completes."""
    empty.text("init")
    empty.text("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read")
    empty.json(*CREATE)
    file = str(empty.folder / "installation.jsonl")
    empty.text("export", file, "--with-keys")
    copy_sealing_key(empty, elsewhere)
    database = Database(_url_of(elsewhere))
    database.migrate()
    database.close()
    output = str(elsewhere.folder / "killed.log")
    job = Job(["import", file], elsewhere.environment, str(elsewhere.folder), output)
    in_transaction = 0
    for kill_at in itertools.count(10, 17):
        ended = run(replace(job, kill_at=kill_at))
        if ended.code != -signal.SIGKILL:
            break
        if ended.passed[-1]:
            in_transaction += 1
            assert is_empty(_url_of(elsewhere))
    assert in_transaction >= 5
    assert elsewhere.json("check")[-1]["outcome"] == "ok"
    assert len(elsewhere.json("client", "list")) == 1
    assert len(elsewhere.json("audit", "--action", "installation.import")) == 1


def _url_of(shell: Shell) -> URL:
    return parse_database_url(shell.environment["AUTHSERVER_DATABASE_URL"])


def execute(shell: Shell, statement: str) -> Any:
    """Run one statement on a shell's database and return its first value."""
    database = Database(_url_of(shell))
    with database.engine.begin() as connection:
        result = connection.exec_driver_sql(statement)
        value = result.scalar() if result.returns_rows else None
    database.close()
    return value
