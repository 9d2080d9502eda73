"""Commands that change and revoke, and how an admin finds the remediation of a refusal."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from sqlalchemy import make_url
from support.authserver import ISSUER, OTHER_RESOURCE, RESOURCE, AuthServer, token_form
from support.migrations import downgrade
from support.shell import CREATE, Shell

from gatehouse.authserver.cli import main
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials.client_secrets import rotate_secret
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.resources.registration import ScopeDeclaration, add_resource
from gatehouse.authserver.tokens.inspect import Inspection
from gatehouse.shared.protocol.jws import SigningKey, read_unverified_claims
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.audit import AUTHSERVER_ACTIONS
from gatehouse.shared.service.checks import Check


def test_a_resource_is_shown_with_its_scope_descriptions(shell: Shell) -> None:
    shown = shell.json("resource", "show", RESOURCE)
    described = {"scope": "env:read", "description": "See environments", "implies": [], "declared": True}
    assert described in shown["scopes"]
    assert "See environments" in shell.text("resource", "show", RESOURCE)
    assert "There is no resource" in shell.refusal("resource", "show", f"{RESOURCE}/other")


def test_an_undeclared_scope_is_kept_but_cannot_be_granted(shell: Shell) -> None:
    holder, other = shell.json(*CREATE)["client_id"], shell.json(*CREATE)["client_id"]
    shell.text("client", "grant", "add", holder, "--resource", RESOURCE, "--scope", "env:write")
    result = shell.run("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read")
    assert result.exit_code == 0
    assert "No longer declared: env:write org:read. Clients keep their grants of these" in result.stderr
    assert "env:write" not in result.stdout
    assert shell.json("audit")[-1]["detail"] == {"scopes": ["env:read"], "undeclared": ["env:write", "org:read"]}
    shown = shell.json("resource", "show", RESOURCE)
    assert shown["scopes_supported"] == ["env:read"]
    assert {row["scope"]: row["declared"] for row in shown["scopes"]} == {
        "env:read": True,
        "env:write": False,
        "org:read": False,
    }
    assert "declared" in shell.text("resource", "show", RESOURCE).splitlines()[3]
    refusal = shell.refusal("client", "grant", "add", other, "--resource", RESOURCE, "--scope", "env:write")
    assert "The resource no longer declares the scope env:write. Its scopes are: env:read." in refusal
    assert shell.json("token", "issue", "--client", holder, "--resource", RESOURCE)["scope"] == "env:read env:write"
    again = shell.run("resource", "add", RESOURCE, "--name", "tools", "--scope", "env:read", "--scope", "env:write")
    assert "No longer declared: org:read." in again.stderr
    assert shell.text("client", "grant", "add", other, "--resource", RESOURCE, "--scope", "env:write")


def test_scopes_separated_by_commas_are_refused_with_a_hint(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    add = ("client", "grant", "add", client_id, "--resource", RESOURCE, "--scope")
    assert shell.text(*add, "env:read env:write")
    assert shell.refusal(*add, "env:read,env:write").endswith("env:write, org:read. Separate scopes by spaces.\n")
    assert "Separate scopes by one space" in shell.refusal(*add, "env:read  env:write")
    refusal = shell.refusal("token", "issue", "--client", client_id, "--resource", RESOURCE, "--scope", "a,b")
    assert f"{RESOURCE} has no scope a,b; it has: env:read env:write org:read." in refusal
    assert refusal.endswith("Ask for a scope that the resource has. Separate scopes by spaces.\n")


@pytest.mark.both_databases
def test_a_resource_is_removed_with_its_grants(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    assert "Repeat the command with --yes" in shell.refusal("resource", "remove", RESOURCE)
    assert shell.json("resource", "list")
    assert shell.json("resource", "remove", RESOURCE, "--yes")["clients"] == [client_id]
    assert shell.json("resource", "list") == []
    assert shell.json("client", "show", client_id)["grants"] == []
    assert shell.json("audit")[-1]["action"] == "resource.remove"
    assert "There is no resource" in shell.refusal("resource", "remove", RESOURCE, "--yes")


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
    note = "This client has no workspace. The tools of the bundled catalogue need --claim workspace_id=wks_..."
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
            (["--name", name], "A client name is 1 to 128 printable characters, none of them invisible.")
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


@pytest.mark.both_databases
def test_the_audit_log_is_filtered_by_action_and_time(shell: Shell) -> None:
    shell.json(*CREATE)
    everything = shell.json("audit")
    created = [event for event in everything if event["action"] == "client.create"]
    assert 0 < len(created) < len(everything)
    assert shell.json("audit", "--action", "client.create") == created
    for begin in ("1h", "2000-01-01T00:00:00Z"):
        assert shell.json("audit", "--since", begin) == everything
    assert shell.json("audit", "--since", "2100-01-01") == []
    assert "write 2026-01-31T12:00:00Z" in shell.refusal("audit", "--since", "yesterday", code=2)


@pytest.mark.parametrize(
    ("form", "reason", "remediation"),
    [
        pytest.param(
            {"scope": "org:read"},
            f"not granted at {RESOURCE}: org:read",
            f"authserver client grant add {{client_id}} --resource {RESOURCE} --scope org:read",
            id="existing scope",
        ),
        pytest.param(
            {"scope": "org:raed"},
            f"{RESOURCE} has no scope org:raed; it has: env:read env:write org:read",
            "Ask for a scope that the resource has.",
            id="no such scope",
        ),
        pytest.param(
            {"scope": "env:read,org:read"},
            f"{RESOURCE} has no scope env:read,org:read; it has: env:read env:write org:read",
            "Ask for a scope that the resource has. Separate scopes by spaces.",
            id="commas",
        ),
        pytest.param(
            {"resource": OTHER_RESOURCE},
            f"no grant at {OTHER_RESOURCE}",
            f"authserver client grant add {{client_id}} --resource {OTHER_RESOURCE} --scope ...",
            id="existing resource",
        ),
        pytest.param(
            {"resource": "https://none.example.com/mcp"},
            "https://none.example.com/mcp is not registered",
            "authserver resource list",
            id="no such resource",
        ),
        pytest.param(
            {"resource": f"{RESOURCE}/"},
            f"{RESOURCE}/ is not registered; {RESOURCE} is",
            f"Name the resource as it is registered: {RESOURCE}",
            id="slash",
        ),
        pytest.param(
            {"resource": "https://mcp.example.com/MCP"},
            f"https://mcp.example.com/MCP is not registered; {RESOURCE} is",
            f"Name the resource as it is registered: {RESOURCE}",
            id="case",
        ),
    ],
)
def test_the_audit_log_shows_how_to_fix_a_refused_request(
    authserver: AuthServer, form: dict[str, str], reason: str, remediation: str
) -> None:
    """A grant is suggested only if the resource and the scope exist."""
    authserver.add_resource(OTHER_RESOURCE)
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
    assert refused.json["request_id"] == refused.headers["X-Request-Id"]
    [event] = authserver.audit(request_id=refused.json["request_id"])
    assert event["reason"] == reason
    assert event["detail"]["remediation"] == remediation.format(client_id=client.client_id)
    assert event["object"] == form.get("resource")
    assert "grant add" not in refused.text


def test_a_refusal_does_not_reveal_what_is_registered(authserver: AuthServer) -> None:
    """Otherwise any client could discover the resources of others."""
    authserver.add_resource(OTHER_RESOURCE)
    client, secret = authserver.create_client()
    for forms in (
        [{"resource": OTHER_RESOURCE}, {"resource": "https://none.example.com/mcp"}, {"resource": f"{RESOURCE}/"}],
        [{"scope": "org:read"}, {"scope": "org:raed"}],
    ):
        answers = []
        for form in forms:
            refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
            answers.append((refused.status_code, refused.json["error"], refused.json["error_description"]))
        assert len(set(answers)) == 1
        assert answers[0][0] == 400


def test_a_narrowed_grant_is_recorded_with_scope_not_granted(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    for scope, scope_not_granted in (("env:read", None), ("env:read org:read nope", "nope org:read")):
        response = authserver.post_token(token_form(scope=scope), basic=(client.client_id, secret))
        [event] = authserver.audit(request_id=response.headers["X-Request-Id"])
        assert (event["outcome"], event["detail"]["scope"]) == ("allowed", "env:read")
        assert event["detail"].get("scope_not_granted") == scope_not_granted


@pytest.mark.threat("T-110")
@pytest.mark.parametrize(
    "form", [{"scope": "$(id)"}, {"resource": "https://mcp.example.com/$(id)';id"}], ids=["scope", "resource"]
)
def test_a_client_cannot_inject_into_the_admins_command(authserver: AuthServer, form: dict[str, str]) -> None:
    """CWE-78: the grammar of scopes and resources allows `$(...)`."""
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    with authserver.services.database.write() as session:
        for resource in (RESOURCE, form.get("resource", OTHER_RESOURCE)):
            scopes = [ScopeDeclaration("env:read"), ScopeDeclaration("$(id)")]
            add_resource(session, authserver.admin, resource, "hostile", scopes)
    refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
    [event] = authserver.audit(request_id=refused.json["request_id"])
    words = shlex.split(event["detail"]["remediation"])
    assert words[:5] == ["authserver", "client", "grant", "add", client.client_id]
    assert set(form.values()) <= set(words)
    echoed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {event['detail']['remediation']}"], capture_output=True, text=True, check=True
    )
    assert echoed.stdout.splitlines() == words


@pytest.mark.both_databases
def test_one_request_is_shown_in_full(shell: Shell, authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(scope="org:read"), basic=(client.client_id, secret))
    shell.environment["AUTHSERVER_DATABASE_URL"] = authserver.settings.database_url
    shown = shell.text("audit", "--request", refused.json["request_id"])
    assert "remediation" in shown
    assert f"authserver client grant add {client.client_id}" in shown
    rows = [line.split()[0] for line in shown.splitlines()]
    assert len(rows) > 8
    assert len(rows) == len(set(rows))
    assert "detail" not in rows


def test_every_recorded_action_can_be_filtered(shell: Shell) -> None:
    client_id = shell.json(*CREATE, "--claim", "workspace_id=wks_1")["client_id"]
    grant = (client_id, "--resource", RESOURCE, "--scope", "env:read")
    soft, key_id = ("--grace-period", "7d"), shell.json(*CREATE, "--generate-key", f"{shell.folder}/a.pem")["client_id"]
    old, old_key = shell.json("client", "secret", "list", client_id)[0], shell.json("client", "key", "list", key_id)[0]
    for command in (
        ("client", "secret", "rotate", client_id, *soft),
        ("client", "secret", "revoke", client_id, old["secret_id"], "--yes"),
        ("client", "key", "rotate", key_id, "--generate-key", f"{shell.folder}/b.pem", *soft),
        ("client", "key", "revoke", key_id, old_key["kid"], "--yes"),
        *(("client", "grant", "add", *grant), ("client", "grant", "remove", *grant)),
        *(("client", "update", client_id, "--ttl", "60"), ("client", "secret", "rotate", client_id, "--yes")),
        *(("client", "disable", client_id), ("client", "enable", client_id), ("client", "delete", client_id, "--yes")),
        ("resource", "add", RESOURCE, "--name", "tools", "--scope", "a"),
        ("token", "revoke", "--client", key_id),
        ("key", "rotate"),
        ("key", "revoke", shell.json("key", "list")[0]["kid"], "--yes"),
        ("sealing-key", "rotate", "--yes"),
        ("export", str(shell.folder / "moved")),
    ):
        shell.text(*command)
    credential = shell.json("resource", "credential", "create", RESOURCE)["credential_id"]
    rotated = shell.json("resource", "credential", "rotate", credential)["credential_id"]
    shell.text("resource", "credential", "revoke", rotated, "--yes")
    shell.text("resource", "remove", RESOURCE, "--yes")
    recorded = {event["action"] for event in shell.json("audit")}
    others = {"http.request", "installation.import", "key.remove", "key.retire", "token.introspect", "token.issue"}
    assert recorded == set(AUTHSERVER_ACTIONS) - others
    for action in AUTHSERVER_ACTIONS:
        shell.text("audit", "--action", action)
    assert "The actions are: client.create, client.delete" in shell.refusal("audit", "--action", "client.created")


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


@pytest.mark.threat("T-108")
def test_a_debugging_token_is_recorded_with_its_admin(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    issued = shell.json("token", "issue", "--client", client_id, "--resource", RESOURCE)
    assert (issued["scope"], issued["expires_in"]) == ("env:read", 300)
    event = shell.json("audit", "--jti", issued["jti"])[0]
    assert (event["action"], event["object"]) == ("token.issue", client_id)
    assert event["actor"].startswith("admin:")
    assert issued["access_token"] not in json.dumps(shell.json("audit"))
    refusal = shell.refusal("token", "issue", "--client", client_id, "--resource", RESOURCE, "--scope", "org:read")
    assert "authserver client grant add" in refusal
    shell.text("client", "disable", client_id)
    assert "is disabled" in shell.refusal("token", "issue", "--client", client_id, "--resource", RESOURCE)


def inspect(shell: Shell, token: str) -> tuple[int, dict[str, tuple[str, str]]]:
    result = CliRunner().invoke(main, ["token", "inspect", "--output", "json"], env=shell.environment, input=token)
    assert token not in result.output
    checks = {check["check"]: (check["outcome"], check["detail"]) for check in json.loads(result.stdout)}
    return result.exit_code, checks


@pytest.fixture
def issued(shell: Shell) -> str:
    client_id = shell.json(*CREATE)["client_id"]
    token: str = shell.json("token", "issue", "--client", client_id, "--resource", RESOURCE)["access_token"]
    return token


def test_a_valid_token_passes_every_check(shell: Shell, issued: str) -> None:
    code, checks = inspect(shell, f"{issued}\n")
    assert code == 0
    assert {outcome for outcome, _ in checks.values()} == {"ok"}
    assert list(checks) == ["header", "typ", "signature", "iss", "aud", "lifetime", "time", "status", "client"]


@pytest.mark.parametrize(
    ("form", "told"),
    [
        ("", "standard input is empty"),
        (" \n", "standard input is empty"),
        ("Bearer {token}", "remove Bearer"),
        ('{{"access_token": "{token}"}}', "this is JSON"),
        ('"{token}"', "without quotes"),
        ("gths_hunter2", "this is a client secret"),
        ("hunter2", "a token has 2 dots, and this text has 0"),
        ("{token}.x", "a token has 2 dots, and this text has 3"),
    ],
)
def test_input_that_is_not_a_token_is_identified(shell: Shell, issued: str, form: str, told: str) -> None:
    assert inspect(shell, issued)[0] == 0
    result = CliRunner().invoke(
        main, ["token", "inspect", "--output", "json"], env=shell.environment, input=form.format(token=issued)
    )
    assert result.exit_code == 1
    [failed] = [check for check in json.loads(result.stdout) if check["outcome"] == "failed"]
    assert failed["check"] == "header"
    assert told in failed["detail"]
    assert "hunter2" not in result.output
    assert issued not in result.output


def test_a_foreign_tokens_issuer_is_shown_as_unverified(shell: Shell, issued: str) -> None:
    claims, key = read_unverified_claims(issued), SigningKey.generate("ES256")
    for iss, told in (("https://staging.example.com", "; unverified, its iss is https://staging.example.com"), (7, "")):
        _, checks = inspect(shell, key.sign("at+jwt", {**claims, "iss": iss}))
        assert checks["signature"][1] == f"kid is not among the published keys{told}"


def test_the_first_failed_check_skips_the_rest(shell: Shell, issued: str) -> None:
    head, payload, signature = issued.split(".")
    for token, failing in (("abc", "header"), (f"{head}.{payload}.{signature[::-1]}", "signature")):
        code, checks = inspect(shell, token)
        assert code == 1
        assert checks[failing][0] == "failed"
        names = list(checks)
        assert {checks[name][0] for name in names[: names.index(failing)]} <= {"ok"}
        assert {checks[name][0] for name in names[names.index(failing) + 1 :]} == {"not checked"}


def test_a_token_signed_here_gets_every_check(shell: Shell, issued: str) -> None:
    claims = read_unverified_claims(issued)
    assert inspect(shell, issued)[0] == 0
    shell.text("client", "disable", claims["client_id"])
    code, checks = inspect(shell, issued)
    assert code == 1
    outcomes = {name: outcome for name, (outcome, _) in checks.items()}
    assert outcomes.pop("status") == outcomes.pop("client") == "failed"
    assert set(outcomes.values()) == {"ok"}


def test_an_assertion_and_a_token_of_another_key_are_identified(shell: Shell, issued: str) -> None:
    claims = read_unverified_claims(issued)
    key = SigningKey.generate("ES256")
    for typ, failing, detail in (
        ("JWT", "typ", "typ is not at+jwt"),
        ("at+jwt", "signature", "not among the published"),
    ):
        code, checks = inspect(shell, key.sign(typ, claims))
        assert code == 1
        assert checks[failing][0] == "failed"
        assert detail in checks[failing][1]


@pytest.mark.parametrize(
    ("changes", "check", "detail"),
    [
        ({"iss": "https://evil.example"}, "iss", "iss is https://evil.example, not the trusted issuer"),
        (
            {"aud": "https://other.example.com/mcp"},
            "aud",
            "other.example.com/mcp, which is not a registered resource",
        ),
        ({"exp": 4_000_000_000}, "lifetime", "1 to 3600 s are allowed"),
        ({"iat": 1_000_000_000, "exp": 1_000_000_300}, "time", "expired"),
        ({"iat": 4_000_000_000, "exp": 4_000_000_300}, "time", "compare the clocks"),
        ({"jti": None}, "signature", "jti is missing"),
        ({"status": None}, "status", "no status in a list of this issuer"),
        ({"status": {"status_list": {"idx": 0, "uri": "https://evil.example/l"}}}, "status", "of this issuer"),
        ({"status": {"status_list": {"idx": 1, "uri": f"{ISSUER}/status-lists/0123456789ab"}}}, "status", "revoked"),
    ],
    ids=["iss", "aud", "lifetime", "expired", "early", "claims", "no status", "foreign status", "revoked"],
)
def test_each_check_of_a_token_can_fail(
    authserver: AuthServer, changes: dict[str, Any], check: str, detail: str
) -> None:
    key = authserver.services.keys.ring().signing_key
    client, _ = authserver.create_client()
    now = int(authserver.clock())
    claims = {"iss": ISSUER, "sub": client.client_id, "client_id": client.client_id, "aud": RESOURCE, "iat": now}
    claims |= {"exp": now + 300, "jti": "a", "scope": "env:read"}
    claims |= {"status": {"status_list": {"idx": 0, "uri": f"{ISSUER}/status-lists/0123456789ab"}}}

    def checks_of(claims: dict[str, Any], clients: dict[str, Client]) -> dict[str, Check]:
        inspection = Inspection(
            key.sign("at+jwt", claims),
            ISSUER,
            parse_key_set(authserver.services.keys.ring().jwks),
            clients.get,
            frozenset({RESOURCE}),
            authserver.clock,
            lambda index: index.idx == 0,
        )
        return {check.check: check for check in inspection.run()}

    good = checks_of(claims, {client.client_id: client})
    assert {check.outcome for check in good.values()} == {"ok"}
    assert "does not exist" in checks_of(claims, {})["client"].detail
    changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    failed = checks_of(changed, {client.client_id: client})[check]
    assert failed.outcome == "failed"
    assert detail in failed.detail


def test_check_reports_every_problem_and_passes_when_there_is_none(shell: Shell) -> None:
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    (shell.folder / "keys" / "sealing.key").chmod(0o644)
    Path(shell.environment["AUTHSERVER_DATABASE_URL"].removeprefix("sqlite:///")).chmod(0o666)
    result = shell.run("check", "--output", "json")
    assert result.exit_code == 1
    outcomes = {check["check"]: check for check in json.loads(result.stdout)}
    assert "chmod 600" in outcomes["sealing key"]["detail"]
    assert "chmod go-w" in outcomes["database"]["detail"]
    shell.environment |= {"AUTHSERVER_BIND": "nowhere", "AUTHSERVER_TOKEN_TTL": "9999"}
    result = shell.run("check", "--output", "json")
    assert [check["outcome"] for check in json.loads(result.stdout)] == ["failed", "failed"]


def test_check_reports_an_outdated_database(shell: Shell) -> None:
    assert {check["outcome"] for check in shell.json("check")} == {"ok"}
    downgrade(make_url(shell.environment["AUTHSERVER_DATABASE_URL"]), Database.schema, "base")
    result = shell.run("check", "--output", "json")
    assert result.exit_code == 1
    failed = {check["check"]: check["detail"] for check in json.loads(result.stdout) if check["outcome"] == "failed"}
    assert set(failed) == {"database", "signing key"}
    assert all("Run: authserver init" in detail for detail in failed.values())


def test_check_explains_every_setting(shell: Shell) -> None:
    explained = shell.json("check", "--explain")
    assert {row["setting"] for row in explained} >= {"AUTHSERVER_ISSUER", "AUTHSERVER_BIND", "AUTHSERVER_SEALING_KEY"}
    assert all(row["description"] for row in explained)
