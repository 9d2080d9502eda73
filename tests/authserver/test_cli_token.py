"""The commands `token issue` and `token inspect`: tokens for debugging, and each check of a token."""

import json
from typing import Any

import pytest
from click.testing import CliRunner
from support.authserver import ISSUER, RESOURCE, AuthServer
from support.shell import CREATE, Shell

from gatehouse.authserver.cli import main
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.inspect import Inspection
from gatehouse.shared.protocol.jws import SigningKey, read_unverified_claims
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.checks import Check


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


@pytest.mark.parametrize("command", ["inspect", "revoke"])
def test_a_token_as_argument_is_refused_and_not_repeated(shell: Shell, issued: str, command: str) -> None:
    result = CliRunner().invoke(main, ["token", command, issued], env=shell.environment, input=issued)
    assert result.exit_code == 2
    assert f"The token is read from standard input, and not from an argument. Run: main token {command} < FILE" in (
        result.output
    )
    assert issued not in result.output
    assert inspect(shell, issued)[0] == 0


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
