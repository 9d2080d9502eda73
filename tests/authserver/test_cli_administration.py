"""What an admin changes and takes away, and how a refusal is traced to its mend."""

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from support.authserver import ISSUER, RESOURCE, AuthServer, token_form
from support.shell import CREATE, Shell

from gatehouse.authserver.cli import main
from gatehouse.authserver.clients.administration import rotate_secret
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.inspect import Inspection
from gatehouse.shared.checks import Check
from gatehouse.shared.jose import SigningKey, parse_key_set, read_unverified_claims


def test_a_resource_is_shown_with_what_its_scopes_are_for(shell: Shell) -> None:
    shown = shell.json("resource", "show", RESOURCE)
    assert {"scope": "env:read", "description": "See environments", "implies": []} in shown["scopes"]
    assert "See environments" in shell.text("resource", "show", RESOURCE)
    assert "There is no resource" in shell.refusal("resource", "show", f"{RESOURCE}/other")


def test_a_resource_is_removed_with_every_grant_at_it(shell: Shell) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    assert "Repeat the command with --yes" in shell.refusal("resource", "remove", RESOURCE)
    assert shell.json("resource", "list")
    assert shell.json("resource", "remove", RESOURCE, "--yes")["clients"] == [client_id]
    assert shell.json("resource", "list") == []
    assert shell.json("client", "show", client_id)["grants"] == []
    assert shell.json("audit")[-1]["action"] == "resource.remove"
    assert "There is no resource" in shell.refusal("resource", "remove", RESOURCE, "--yes")


@pytest.mark.parametrize("answer", ["n", "", "y"])
def test_what_cannot_be_undone_is_asked_for(shell: Shell, answer: str) -> None:
    client_id = shell.json(*CREATE)["client_id"]
    result = CliRunner().invoke(main, ["client", "delete", client_id], env=shell.environment, input=f"{answer}\n")
    assert result.exit_code == (0 if answer == "y" else 1)
    assert bool(shell.json("client", "list")) == (answer != "y")


def test_a_client_is_changed_member_by_member(shell: Shell) -> None:
    created = shell.json(*CREATE, "--claim", "workspace_id=wks_1", "--claim", "team=a")
    client_id = created["client_id"]
    options = ("--ttl", "60", "--strict", "--claim", "workspace_id=wks_2", "--remove-claim", "team")
    changed = shell.json("client", "update", client_id, *options)
    assert (changed["token_ttl"], changed["strict"], changed["claims"]) == (60, True, {"workspace_id": "wks_2"})
    assert changed["client_name"] == created["client_name"]
    renamed = shell.json("client", "update", client_id, "--name", "renamed", "--no-strict")
    assert renamed == {**changed, "client_name": "renamed", "strict": False}
    assert shell.json("audit")[-1]["action"] == "client.update"


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--claim", "scope=all"], "scope is a reserved claim"),
        (["--name", ""], "A client name is 1 to 128 printable characters"),
    ],
)
def test_an_update_that_cannot_be_made_changes_nothing(shell: Shell, options: list[str], problem: str) -> None:
    created = shell.json(*CREATE)
    del created["client_secret"]
    assert problem in shell.refusal("client", "update", created["client_id"], "--ttl", "60", *options)
    assert shell.json("client", "show", created["client_id"]) == created


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
    [after] = shell.json("client", "secret", "list", client_id)
    assert after["secret_id"] != before["secret_id"]
    assert rotated["client_secret"].startswith(after["begins"])
    assert len(after["begins"]) < 12
    assert rotated["client_secret"] not in json.dumps(shell.json("audit"))


def test_a_client_with_keys_has_no_secret_to_rotate(shell: Shell) -> None:
    client_id = shell.json(*CREATE, "--generate-key", str(shell.folder / "agent.pem"))["client_id"]
    assert "it has keys, and no secret" in shell.refusal("client", "secret", "rotate", client_id, "--yes")
    assert shell.json("client", "secret", "list", client_id) == []


def test_the_token_endpoint_takes_the_new_secret_and_not_the_old_one(authserver: AuthServer) -> None:
    client, old = authserver.create_client()
    other, kept = authserver.create_client()
    assert authserver.post_token(basic=(other.client_id, kept)).status_code == 200
    with authserver.services.database.write() as session:
        _, new = rotate_secret(session, authserver.admin, authserver.services.keys.ring(), client.client_id)
    assert authserver.post_token(basic=(client.client_id, new)).status_code == 200
    assert authserver.post_token(basic=(client.client_id, old)).status_code == 401


def test_the_trail_is_filtered_by_action_and_time(shell: Shell) -> None:
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
    ("form", "mend"),
    [
        (
            token_form(scope="org:read"),
            "authserver client grant add {client_id} --resource {resource} --scope org:read",
        ),
        (
            token_form(resource="https://other.example.com/mcp"),
            "authserver client grant add {client_id} --resource https://other.example.com/mcp --scope ...",
        ),
    ],
    ids=["scope", "resource"],
)
def test_a_refused_token_request_is_traced_to_the_command_that_would_allow_it(
    authserver: AuthServer, form: dict[str, str], mend: str
) -> None:
    client, secret = authserver.create_client()
    refused = authserver.post_token(form, basic=(client.client_id, secret))
    assert refused.json["request_id"] == refused.headers["X-Request-Id"]
    [event] = authserver.audit(request_id=refused.json["request_id"])
    assert event["detail"]["mend"] == mend.format(client_id=client.client_id, resource=RESOURCE)
    assert "grant add" not in refused.text


@pytest.mark.parametrize("form", [{"scope": "$(id)"}, {"resource": "https://mcp.example.com/$(id)';id"}])
def test_a_caller_does_not_choose_what_an_admin_pastes(authserver: AuthServer, form: dict[str, str]) -> None:
    """CWE-78: `$(...)` is within the grammar of a scope and of a resource."""
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    refused = authserver.post_token(token_form(**form), basic=(client.client_id, secret))
    [event] = authserver.audit(request_id=refused.json["request_id"])
    words = shlex.split(event["detail"]["mend"])
    assert words[:5] == ["authserver", "client", "grant", "add", client.client_id]
    assert set(form.values()) <= set(words)
    echoed = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {event['detail']['mend']}"], capture_output=True, text=True, check=True
    )
    assert echoed.stdout.splitlines() == words


def test_one_request_is_shown_in_full(shell: Shell, authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(scope="org:read"), basic=(client.client_id, secret))
    shell.environment["AUTHSERVER_DATABASE_URL"] = authserver.settings.database_url
    shown = shell.text("audit", "--request", refused.json["request_id"])
    assert "mend" in shown
    assert f"authserver client grant add {client.client_id}" in shown
    assert len(shown.splitlines()) > 8


def test_a_key_that_is_registered_is_listed_by_its_name(shell: Shell) -> None:
    key = SigningKey.generate("ES256")
    file = shell.folder / "jwk.json"
    file.write_text(json.dumps({**key.public_jwk(), "kid": "my-key"}), encoding="utf-8")
    assert shell.json(*CREATE, "--jwks", str(file))["key_ids"] == ["my-key"]


def test_an_admin_issues_a_token_to_debug_with_and_is_named_for_it(shell: Shell) -> None:
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


def test_a_good_token_passes_every_check(shell: Shell, issued: str) -> None:
    code, checks = inspect(shell, f"{issued}\n")
    assert code == 0
    assert {outcome for outcome, _ in checks.values()} == {"ok"}
    assert list(checks) == ["header", "typ", "signature", "iss", "aud", "lifetime", "time", "status", "client"]


def test_the_first_check_that_fails_is_named_and_the_rest_is_not_made(shell: Shell, issued: str) -> None:
    head, payload, signature = issued.split(".")
    for token, failing in (("abc", "header"), (f"{head}.{payload}.{signature[::-1]}", "signature")):
        code, checks = inspect(shell, token)
        assert code == 1
        assert checks[failing][0] == "failed"
        names = list(checks)
        assert {checks[name][0] for name in names[: names.index(failing)]} <= {"ok"}
        assert {checks[name][0] for name in names[names.index(failing) + 1 :]} == {"not checked"}


def test_an_assertion_and_a_token_of_another_key_are_named_for_what_they_are(shell: Shell, issued: str) -> None:
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
        ({"iss": "https://evil.example"}, "iss", "iss is not"),
        ({"aud": "https://other.example.com/mcp"}, "aud", "not a registered resource"),
        ({"exp": 4_000_000_000}, "lifetime", "not between 0 and 3600 s"),
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
            clients,
            frozenset({RESOURCE}),
            authserver.clock,
            lambda index: index.idx == 0,
        )
        return {check.check: check for check in inspection.run()}

    good = checks_of(claims, {client.client_id: client})
    assert {check.outcome for check in good.values()} == {"ok"}
    assert "is gone" in checks_of(claims, {})["client"].detail
    changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}
    failed = checks_of(changed, {client.client_id: client})[check]
    assert failed.outcome == "failed"
    assert detail in failed.detail


@pytest.mark.only_on("sqlite")
def test_check_reports_every_problem_and_passes_a_sound_installation(shell: Shell) -> None:
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


def test_check_explains_every_setting(shell: Shell) -> None:
    explained = shell.json("check", "--explain")
    assert {row["setting"] for row in explained} >= {"AUTHSERVER_ISSUER", "AUTHSERVER_BIND", "AUTHSERVER_SEALING_KEY"}
    assert all(row["description"] for row in explained)
