"""The command group `client`: creation, changes, grants, secrets, keys and deletion of clients."""

import json

import pytest
from click.testing import CliRunner
from support.authserver import RESOURCE, AuthServer
from support.databases import everything_in
from support.shell import CREATE, Shell

from gatehouse.authserver.cli import main
from gatehouse.authserver.credentials.client_secrets import rotate_secret
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.database import parse_database_url


@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_irreversible_commands_need_confirmation(shell: Shell, answer: str) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    result = CliRunner().invoke(main, ["client", "delete", client_id], env=shell.environment, input=f"{answer}\n")
    assert result.exit_code == (0 if answer == "y" else 1)
    assert bool(shell.json("client", "list")) == (answer != "y")


@pytest.mark.both_databases
def test_each_member_of_a_client_can_be_changed(shell: Shell) -> None:
    created = shell.json(*CREATE, "--claim", "workspace_id=wks_1", "--claim", "team=a")
    client_id = created["client_id"]
    options = ("--ttl", "60", "--strict", "--claim", "workspace_id=wks_2", "--remove-claim", "team")
    changed = shell.json("client", "update", client_id, *options)
    assert (changed["token_ttl"], changed["strict"], changed["claims"]) == (60, True, {"workspace_id": "wks_2"})
    assert changed["client_name"] == created["client_name"]
    renamed = shell.json("client", "update", client_id, "--name", "renamed", "--no-strict")
    assert renamed == {**changed, "client_name": "renamed", "strict": False}
    assert shell.json("audit")[-1]["action"] == "client.update"


def test_every_change_can_be_undone(shell: Shell) -> None:
    created = shell.json(*CREATE, "--ttl", "60", "--token-endpoint-audience")
    client_id = created["client_id"]
    assert (created["token_ttl"], created["token_endpoint_audience"]) == (60, True)
    changed = shell.json("client", "update", client_id, "--default-ttl", "--no-token-endpoint-audience")
    assert (changed["token_ttl"], changed["token_endpoint_audience"]) == (None, False)
    assert shell.json("client", "show", client_id) == changed
    again = shell.json("client", "update", client_id, "--ttl", "60", "--token-endpoint-audience")
    del created["client_secret"]
    assert again == created
    assert "not both" in shell.refusal("client", "update", client_id, "--ttl", "60", "--default-ttl", code=2)


def test_the_event_of_a_change_names_what_changed(shell: Shell) -> None:
    client_id = shell.json(*CREATE, "--claim", "team=a", "--claim", "kept=1", "--token-endpoint-audience")["client_id"]
    [creation] = shell.json("audit", "--action", "client.create")
    assert creation["detail"]["token_endpoint_audience"] is True
    same = ("--name", "agent", "--no-strict", "--claim", "kept=1")
    shell.json("client", "update", client_id, *same, "--default-ttl")
    assert shell.json("audit", "--action", "client.update") == []
    shell.json("client", "update", client_id, *same, "--ttl", "60", "--claim", "new=b", "--remove-claim", "team")
    [event] = shell.json("audit", "--action", "client.update")
    assert event["detail"] == {"token_ttl": 60, "claims": {"team": None, "new": "b"}}


def test_an_empty_update_is_a_usage_error(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    assert "Nothing to change: give at least one option" in shell.refusal("client", "update", client_id, code=2)
    shell.json("client", "update", client_id, "--strict")


def test_a_client_without_a_workspace_causes_a_warning(shell: Shell) -> None:
    """Other claim names are allowed, so a misspelt name can only cause a warning."""
    note = "If the resource serves the bundled directory, its tools need --claim workspace_id=wks_..."
    made = shell.run(*CREATE, "--claim", "workspace=wks_1", "--output", "json")
    assert note in made.stderr
    client_id = json.loads(made.stdout)["client_id"]
    changed = shell.run("client", "update", client_id, "--ttl", "60")
    assert note in changed.stderr
    fixed = shell.run("client", "update", client_id, "--claim", "workspace_id=wks_1", "--remove-claim", "workspace")
    assert (fixed.exit_code, note in fixed.stderr) == (0, False)
    assert note not in shell.run(*CREATE, "--claim", "workspace_id=wks_1").stderr


@pytest.mark.parametrize("dots", ["...", "\u2026"])
def test_the_placeholder_of_an_example_is_not_a_value(shell: Shell, dots: str) -> None:
    refusal = shell.refusal(*CREATE, "--claim", f"workspace_id=wks_{dots}", code=2)
    assert "replace the dots in workspace_id with the whole value" in refusal
    assert shell.json("client", "list") == []
    assert "wks_..." not in shell.text("client", "create", "--help") + shell.text("client", "update", "--help")


@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--claim", "scope=all"], "scope is a reserved claim"),
        (["--remove-claim", "tema"], "The client has no claim tema. It has: none."),
        *(
            (["--name", name], "A client name must have 1 to 128 visible characters.")
            for name in ("", " ", "a\x1b[2J", "a\ufe0f", "a\u3164", "\u2800", "a\u0378", "a\U000e0101")
        ),
    ],
)
def test_a_refused_update_changes_nothing(shell: Shell, options: list[str], problem: str) -> None:
    created = shell.json(*CREATE)
    del created["client_secret"]
    assert problem in shell.refusal("client", "update", created["client_id"], "--ttl", "60", *options)
    assert shell.json("client", "show", created["client_id"]) == created


@pytest.mark.both_databases
def test_a_client_is_deleted_with_its_credentials_and_grants(shell: Shell) -> None:
    kept, deleted = shell.json(*CREATE)["client_id"], shell.json(*CREATE)["client_id"]
    assert "Repeat the command with --yes" in shell.refusal("client", "delete", deleted)
    assert shell.json("client", "delete", deleted, "--yes")["deleted"]
    assert [client["client_id"] for client in shell.json("client", "list")] == [kept]
    assert f"There is no client {deleted}" in shell.refusal("client", "delete", deleted, "--yes")
    assert "There is no client" in shell.refusal("client", "secret", "list", deleted)


def test_a_rotated_secret_replaces_the_old_one(shell: Shell) -> None:
    created = shell.json(*CREATE)
    client_id = created["client_id"]
    [before] = shell.json("client", "secret", "list", client_id)
    rotated = shell.json("client", "secret", "rotate", client_id, "--yes")
    assert rotated["client_secret"].startswith("gths_")
    assert rotated["client_secret"] != created["client_secret"]
    ended, after = shell.json("client", "secret", "list", client_id)
    assert (before["state"], ended["state"], after["state"]) == ("active", "inactive", "active")
    assert ended["secret_id"] == before["secret_id"]
    assert rotated["client_secret"].startswith(after["prefix"])
    assert len(after["prefix"]) < 12
    assert rotated["client_secret"] not in json.dumps(shell.json("audit"))


def test_a_client_with_keys_has_no_secret_to_rotate(shell: Shell) -> None:
    client_id = shell.json(*CREATE, "--generate-key", str(shell.folder / "agent.pem"))["client_id"]
    refusal = shell.refusal("client", "secret", "rotate", client_id, "--yes")
    assert f"it has keys and no secret. Rotate those: authserver client key rotate {client_id} --jwks FILE" in refusal
    assert shell.json("client", "secret", "list", client_id) == []


def test_the_token_endpoint_accepts_only_the_new_secret(authserver: AuthServer) -> None:
    client, old = authserver.create_client()
    other, kept = authserver.create_client()
    assert authserver.post_token(basic=(other.client_id, kept)).status_code == 200
    with authserver.services.database.write() as session:
        _, new = rotate_secret(session, authserver.admin, authserver.services.keys.ring(), client.client_id)
    assert authserver.post_token(basic=(client.client_id, new)).status_code == 200
    assert authserver.post_token(basic=(client.client_id, old)).status_code == 401


def test_a_registered_key_is_listed_by_name(shell: Shell) -> None:
    key = SigningKey.generate("ES256")
    file = shell.folder / "jwk.json"
    file.write_text(json.dumps({**key.public_jwk(), "kid": "my-key"}), encoding="utf-8")
    assert shell.json(*CREATE, "--jwks", str(file))["key_ids"] == ["my-key"]


def test_an_invalid_key_option_is_refused_with_the_fix(shell: Shell) -> None:
    key, file, new = SigningKey.generate("ES256"), shell.folder / "keys.file", shell.folder / "new.pem"
    file.write_text(json.dumps(key.public_jwk()), encoding="utf-8")
    assert shell.json(*CREATE, "--jwks", str(file))["key_ids"]
    file.write_bytes(key.private_pem())
    told = shell.refusal(*CREATE, "--jwks", str(file))
    assert "is in PEM. Give the public key as a JWK (RFC 7517), or let --generate-key generate a key" in told
    file.write_text("{", encoding="utf-8")
    assert shell.refusal(*CREATE, "--jwks", str(file)).endswith("cannot be used: The text is not valid JSON.\n")
    assert shell.json(*CREATE, "--generate-key", str(new), "--auth-method", "private_key_jwt")["key_ids"]
    new.unlink()
    for method in ("client_secret_basic", "client_secret_post"):
        told = shell.refusal(*CREATE, "--generate-key", str(new), "--auth-method", method, code=2)
        assert f"A client with keys has no secret for --auth-method {method}. Leave out one of the two." in told
        assert not new.exists()
    told = shell.refusal(*CREATE, "--generate-key", str(new), "--auth-method", "workload_identity", code=2)
    assert "has neither a secret nor a key" in told
    assert not new.exists()


def test_a_client_is_printed_with_the_standard_member_names(shell: Shell) -> None:
    """RFC 7591 2 and 3.2.1, RFC 8707."""
    options = ("--auth-method", "client_secret_post", "--claim", "workspace_id=wks_1", "--ttl", "60", "--strict")
    created = shell.json(*CREATE, *options)
    secret = created.pop("client_secret")
    assert secret.startswith("gths_")
    assert created == {
        "client_id": created["client_id"],
        "client_name": "agent",
        "token_endpoint_auth_method": "client_secret_post",
        "disabled": False,
        "strict": True,
        "token_ttl": 60,
        "token_endpoint_audience": False,
        "key_ids": [],
        "keys": [],
        "claims": {"workspace_id": "wks_1"},
        "grants": [{"resource": RESOURCE, "scope": "env:read"}],
        "client_id_issued_at": created["client_id_issued_at"],
    }
    assert shell.json("client", "show", created["client_id"]) == created
    assert shell.json("client", "list") == [created]


def test_a_client_is_also_printed_for_people(shell: Shell) -> None:
    result = shell.run(*CREATE, "--claim", "workspace_id=wks_1")
    assert result.exit_code == 0
    assert "client_secret" in result.stdout
    assert f'granted "env:read" at {RESOURCE}' in result.stdout
    assert "cannot be shown again" in result.stderr
    listed = shell.text("client", "list")
    assert "agent" in listed
    assert "workspace_id=wks_1" in listed


@pytest.mark.both_databases
def test_a_secret_is_printed_once_and_stored_nowhere(shell: Shell) -> None:
    for output in ("json", "table"):
        created = shell.text(*CREATE, "--output", output)
        [secret] = [word.strip('",') for word in created.split() if "gths_" in word]
        client_id = next(word.strip('",') for word in created.split() if "agent_" in word)
        assert created.count(secret) == 1
        shell.outputs.clear()
        for arguments in (
            ["client", "list"],
            ["client", "show", client_id],
            ["client", "disable", client_id],
            ["audit"],
        ):
            shell.text(*arguments)
            shell.text(*arguments, "--output", "json")
        assert client_id in "".join(shell.outputs)
        assert secret not in "".join(shell.outputs)
        stored = everything_in(parse_database_url(shell.environment["AUTHSERVER_DATABASE_URL"]))
        stored += b"".join(path.read_bytes() for path in shell.folder.rglob("*") if path.is_file())
        assert client_id.encode() in stored
        assert secret.removeprefix("gths_").encode() not in stored


def test_clients_are_disabled_and_enabled(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    assert shell.json("client", "disable", client_id)["disabled"] is True
    assert shell.json("client", "show", client_id)["disabled"] is True
    assert shell.json("client", "enable", client_id)["disabled"] is False
    assert "within one second" in shell.run("client", "enable", client_id).stderr


@pytest.mark.both_databases
def test_grants_are_added_and_removed(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    added = shell.json("client", "grant", "add", client_id, "--resource", RESOURCE, "--scope", "org:read env:write")
    assert added["grants"] == [{"resource": RESOURCE, "scope": "env:read env:write org:read"}]
    removed = shell.json("client", "grant", "remove", client_id, "--resource", RESOURCE, "--scope", "env:read org:read")
    assert removed["grants"] == [{"resource": RESOURCE, "scope": "env:write"}]
    assert "client show" in shell.refusal(
        "client", "grant", "remove", client_id, "--resource", RESOURCE, "--scope", "org:read"
    )


def test_a_generated_key_is_a_private_file_and_the_client_has_no_secret(shell: Shell) -> None:
    path = shell.folder / "agent.pem"
    created = shell.json(*CREATE, "--generate-key", str(path))
    assert "client_secret" not in created
    assert created["token_endpoint_auth_method"] == "private_key_jwt"
    assert len(created["key_ids"]) == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text(encoding="ascii").startswith("-----BEGIN PRIVATE KEY-----")
    assert "PRIVATE" not in "".join(shell.outputs)


def test_an_existing_key_file_is_kept_and_no_client_is_created(shell: Shell) -> None:
    path = shell.folder / "agent.pem"
    path.write_text("precious", encoding="ascii")
    assert "File exists" in shell.refusal(*CREATE, "--generate-key", str(path))
    assert path.read_text(encoding="ascii") == "precious"
    assert shell.json("client", "list") == []


def test_public_keys_are_registered_from_a_file(shell: Shell) -> None:
    keys = shell.folder / "jwks.json"
    keys.write_text(json.dumps({"keys": [SigningKey.generate("EdDSA").public_jwk()]}), encoding="utf-8")
    created = shell.json(*CREATE, "--jwks", str(keys))
    assert created["token_endpoint_auth_method"] == "private_key_jwt"
    assert shell.json("client", "show", created["client_id"]) == created


def test_keys_and_their_method_must_be_given_together(shell: Shell) -> None:
    keys = shell.folder / "jwks.json"
    keys.write_text(json.dumps({"keys": [SigningKey.generate("EdDSA").public_jwk()]}), encoding="utf-8")
    shell.text(*CREATE, "--auth-method", "private_key_jwt", "--jwks", str(keys))
    assert "give --jwks FILE or --generate-key FILE" in shell.refusal(*CREATE, "--auth-method", "private_key_jwt")
    told = shell.refusal(*CREATE, "--auth-method", "client_secret_post", "--jwks", str(keys), code=2)
    assert "A client with keys has no secret for --auth-method client_secret_post" in told
