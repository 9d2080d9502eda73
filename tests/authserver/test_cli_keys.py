"""`authserver key` and `authserver sealing-key`."""

import base64
import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import update
from support.authserver import RESOURCE, AuthServer, authenticate, settings_in
from support.keys import rotation_of
from support.shell import CREATE, Shell

from gatehouse.authserver.app import create_services
from gatehouse.authserver.cli import main
from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.shared.protocol.jws import read_header
from gatehouse.shared.protocol.key_sets import parse_key_set


def files(shell: Shell) -> set[str]:
    """Return the files of the sealing key. That of the audit keys stays."""
    return {path.name for path in (shell.folder / "keys").iterdir()} - {"authserver-audit.json"}


def kids_by_state(shell: Shell) -> dict[str, str]:
    return {record["state"]: record["kid"] for record in shell.json("key", "list")}


def authenticated_client(shell: Shell, created: dict[str, str]) -> str:
    """Authenticate with a client's secret at a server that starts now, and return the client."""
    settings = settings_in(shell.folder, database_url=shell.environment["AUTHSERVER_DATABASE_URL"])
    services = create_services(settings)
    try:
        return authenticate(services, created["client_id"], created["client_secret"]).client_id
    finally:
        services.audit.close()
        services.database.close()


def test_a_list_shows_the_next_transition_of_each_key(shell: Shell) -> None:
    [active] = shell.json("key", "list")
    assert (active["state"], active["alg"], active["retired_at"]) == ("active", "ES256", None)
    assert active["then"].startswith("is replaced ")
    published = shell.json("key", "rotate")
    assert published["then"].startswith("signs from ")
    assert kids_by_state(shell) == {"active": active["kid"], "next": published["kid"]}
    assert published["kid"] in shell.refusal("key", "rotate")
    [event] = shell.json("audit", "--action", "key.create")[-1:]
    assert event["object"] == published["kid"]
    assert event["actor"].startswith("admin:")


def test_a_revoked_key_is_replaced_and_its_tokens_are_listed(shell: Shell) -> None:
    [active] = shell.json("key", "list")
    revoked = shell.json("key", "revoke", active["kid"], "--yes")
    assert revoked["tokens"].startswith("every token issued from ")
    assert kids_by_state(shell) == {"active": revoked["active"]}
    assert revoked["active"] != active["kid"]
    published = shell.json("key", "rotate")["kid"]
    assert shell.json("key", "revoke", published, "--yes")["tokens"] == "no token: the key has signed none"
    assert "authserver key list" in shell.refusal("key", "revoke", "unknown", "--yes")


@pytest.mark.threat("T-089")
@pytest.mark.both_databases
def test_a_sealing_key_rotation_keeps_every_key_secret_and_token(shell: Shell) -> None:
    shell.text("key", "rotate")
    created = shell.json(*CREATE)
    token = shell.json("token", "issue", "--client", created["client_id"], "--resource", RESOURCE)["access_token"]
    assert authenticated_client(shell, created) == created["client_id"]
    before = shell.json("key", "list")
    old = (shell.folder / "keys" / "sealing.key").read_bytes()
    (shell.folder / "keys" / ".sealing-unfinished").write_bytes(b"of a process that was killed")
    done = shell.json("sealing-key", "rotate", "--yes")
    assert (done["signing_keys"], done["peppers"], done["undecryptable"]) == (2, 1, [])
    assert (shell.folder / "keys" / "sealing.key").read_bytes() != old
    assert files(shell) == {"sealing.key"}
    assert shell.json("key", "list") == before
    assert authenticated_client(shell, created) == created["client_id"]
    inspected = CliRunner().invoke(main, ["token", "inspect"], env=shell.environment, input=token)
    assert inspected.exit_code == 0, inspected.output
    assert shell.json("check")[-1]["outcome"] == "ok"
    (shell.folder / "keys" / "sealing.key").write_bytes(old)
    assert "Restore that one" in shell.refusal("client", "secret", "rotate", created["client_id"], "--yes")


@pytest.mark.parametrize("option", ["--yes", "--prepare"])
def test_a_lost_sealing_key_is_reported_and_not_replaced(shell: Shell, option: str) -> None:
    shell.text("sealing-key", "rotate", "--yes")
    (shell.folder / "keys").rename(shell.folder / "lost")
    assert "Restore" in shell.refusal("sealing-key", "rotate", option)
    assert not (shell.folder / "keys").exists()
    (shell.folder / "lost").rename(shell.folder / "keys")
    shell.text("sealing-key", "rotate", option)


@pytest.mark.both_databases
def test_a_running_server_loads_a_rotated_sealing_key(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    first = authserver.post_token(basic=(client.client_id, secret))
    shell = shell_on(authserver)
    shell.text("sealing-key", "rotate", "--yes")
    authserver.clock.advance(1)
    second = authserver.post_token(basic=(client.client_id, secret))
    assert [response.status_code for response in (first, second)] == [200, 200]
    kids = {read_header(response.json["access_token"]).kid for response in (first, second)}
    assert kids <= set(parse_key_set(authserver.services.keys.ring().jwks))


def test_a_key_created_after_a_rotation_uses_the_new_sealing_key(authserver: AuthServer) -> None:
    """The process that creates it loaded the old sealing key when it started."""
    rotation = rotation_of(authserver.services, authserver.clock)
    shell = shell_on(authserver)
    shell.text("sealing-key", "rotate", "--yes")
    with authserver.services.database.write() as session:
        made = rotation.publish(session).kid
    assert {record["kid"]: record["state"] for record in shell.json("key", "list")}[made] == "next"


@pytest.mark.threat("T-089")
@pytest.mark.both_databases
@pytest.mark.parametrize("committed", [False, True], ids=["before its commit", "before its rename"])
def test_an_interrupted_rotation_can_be_repeated(shell: Shell, committed: bool) -> None:
    before = shell.json("key", "list")
    keys = shell.folder / "keys"
    if committed:
        old = (keys / "sealing.key").read_bytes()
        shell.text("sealing-key", "rotate", "--yes")
        (keys / "sealing.key").rename(keys / "sealing.key.next")
        (keys / "sealing.key").write_bytes(old)
        (keys / "sealing.key").chmod(0o600)
    else:
        assert shell.json("sealing-key", "rotate", "--prepare")["outcome"] == "created"
        assert shell.json("sealing-key", "rotate", "--prepare")["outcome"] == "present"
    assert files(shell) == {"sealing.key", "sealing.key.next"}
    assert shell.json("key", "list") == before
    added = shell.json("key", "rotate")["kid"]
    following = (keys / "sealing.key.next").read_bytes()
    shell.text("sealing-key", "rotate", "--yes")
    assert (files(shell), (keys / "sealing.key").read_bytes()) == ({"sealing.key"}, following)
    assert {record["kid"]: record["state"] for record in shell.json("key", "list")} == {
        before[0]["kid"]: "active",
        added: "next",
    }


def test_a_sealing_key_in_the_environment_is_rotated_by_naming_both(shell: Shell) -> None:
    before = shell.json("key", "list")
    old = (shell.folder / "keys" / "sealing.key").read_text(encoding="ascii").strip()
    (shell.folder / "keys" / "sealing.key").unlink()
    shell.environment["AUTHSERVER_SEALING_KEY"] = old
    assert "OLD,NEW" in shell.refusal("sealing-key", "rotate", "--yes")
    new = shell.json("sealing-key", "rotate", "--prepare")["next_sealing_key"]
    shell.environment["AUTHSERVER_SEALING_KEY"] = f"{old},{new}"
    assert shell.json("key", "list") == before
    for _ in range(2):
        shell.text("sealing-key", "rotate", "--yes")
        assert shell.json("key", "list") == before
    shell.environment["AUTHSERVER_SEALING_KEY"] = new
    assert shell.json("key", "list") == before
    shell.environment["AUTHSERVER_SEALING_KEY"] = old
    assert shell.json("key", "list")[0]["state"] == "active, undecryptable"
    assert files(shell) == set()


def test_an_undecryptable_row_is_left_unchanged_and_named(authserver: AuthServer) -> None:
    shell = shell_on(authserver)
    added = shell.json("key", "rotate")["kid"]
    with authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).where(SigningKeyRow.kid == added).values(sealed=b"\x01" + bytes(60)))
        session.add(PepperRow(pepper_id="pep_lost", sealed=b"\x01" + bytes(60), created_at=0))
    assert shell.json("sealing-key", "rotate", "--yes")["undecryptable"] == sorted([added, "pep_lost"])
    assert shell.json("key", "revoke", added, "--yes")["revoked"]
    assert shell.json("sealing-key", "rotate", "--yes")["undecryptable"] == ["pep_lost"]


def test_a_wrong_sealing_key_is_not_rotated(shell: Shell) -> None:
    path = shell.folder / "keys" / "sealing.key"
    right = path.read_bytes()
    path.write_bytes(base64.urlsafe_b64encode(os.urandom(32)))
    assert "Restore the right sealing key" in shell.refusal("sealing-key", "rotate", "--yes")
    path.write_bytes(right)
    assert shell.json("check")[-1]["outcome"] == "ok"
    shell.text("sealing-key", "rotate", "--yes")


def test_irreversible_commands_need_confirmation(shell: Shell) -> None:
    before = shell.json("key", "list")
    for arguments in (["key", "revoke", before[0]["kid"]], ["sealing-key", "rotate"]):
        assert "--yes" in shell.refusal(*arguments)
    assert shell.json("key", "list") == before
    assert files(shell) == {"sealing.key"}


def shell_on(server: AuthServer) -> Shell:
    """The command line of the same installation."""
    shell = Shell(server.folder, server.settings.database.render_as_string(hide_password=False))
    assert Path(shell.environment["AUTHSERVER_KEYS_DIR"]) == server.settings.keys_dir
    return shell
