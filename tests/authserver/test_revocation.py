"""`POST /revoke` (RFC 7009) and `authserver token revoke`."""

from typing import Any

import pytest
from click.testing import CliRunner
from support.assertions import ASSERTION_TYPE, KeyClient
from support.authserver import FORM, RESOURCE, AuthServer, basic_header
from support.clock import FakeClock
from support.shell import CREATE, Shell
from werkzeug.test import TestResponse

from gatehouse.authserver.cli import main
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.issue import parse_jti
from gatehouse.authserver.tokens.status_lists import is_active
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey, read_unverified_claims


def post(server: AuthServer, basic: tuple[str, str] | None, **form: str) -> TestResponse:
    headers = {"Authorization": basic_header(*basic)} if basic else {}
    return server.http.post("/revoke", data=form, headers=headers, content_type=FORM)


def issue(server: AuthServer, client: Client, secret: str) -> str:
    token: str = server.post_token(basic=(client.client_id, secret)).json["access_token"]
    return token


def live(server: AuthServer, token: str) -> bool:
    index = parse_jti(read_unverified_claims(token)["jti"])
    assert index is not None
    with server.services.database.read() as session:
        return is_active(session, index.list_id, index.idx)


def last_event(server: AuthServer) -> dict[str, Any]:
    return server.audit(action="token.revoke")[-1]


@pytest.mark.both_databases
def test_a_client_revokes_one_of_its_own_tokens(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    token, other = issue(authserver, client, secret), issue(authserver, client, secret)
    response = post(authserver, (client.client_id, secret), token=token)
    assert (response.status_code, response.data, response.headers["Cache-Control"]) == (200, b"", "no-store")
    assert (live(authserver, token), live(authserver, other)) == (False, True)
    event = last_event(authserver)
    assert (event["actor"], event["outcome"], event["object"]) == (client.client_id, "allowed", RESOURCE)
    assert event["jti"] == read_unverified_claims(token)["jti"]


def test_the_token_type_hint_is_ignored(authserver: AuthServer) -> None:
    """RFC 7009 2.1: a server that can identify the token without the hint may ignore it."""
    client, secret = authserver.create_client()
    for hint in ("access_token", "refresh_token", "x"):
        token = issue(authserver, client, secret)
        assert post(authserver, (client.client_id, secret), token=token, token_type_hint=hint).status_code == 200
        assert not live(authserver, token)


@pytest.mark.divergence("D-31")
@pytest.mark.threat("T-072")
def test_another_clients_token_is_not_revoked_or_revealed(authserver: AuthServer) -> None:
    """RFC 7009 2.1; attack: a client revokes a leaked token of another client."""
    owner, owners_secret = authserver.create_client()
    thief, thiefs_secret = authserver.create_client()
    token = issue(authserver, owner, owners_secret)
    response = post(authserver, (thief.client_id, thiefs_secret), token=token)
    assert (response.status_code, response.data) == (200, b"")
    assert live(authserver, token)
    assert last_event(authserver)["reason"] == "the token belongs to another client"
    post(authserver, (owner.client_id, owners_secret), token=token)
    assert not live(authserver, token)


@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        ("x", "not a compact JWS"),
        ("a.b.c", "a segment is not"),
        ("x" * 9000, "longer than 8 KiB"),
        ("eyJhbGciOiJFUzI1NiJ9.e30.AAAA", "not an access token signed with a published key"),
    ],
)
def test_an_invalid_token_gets_the_response_of_a_revoked_one(authserver: AuthServer, garbage: str, reason: str) -> None:
    """RFC 7009 2.2: the token is already invalid, which is what the client wants."""
    client, secret = authserver.create_client()
    response = post(authserver, (client.client_id, secret), token=garbage)
    assert (response.status_code, response.data) == (200, b"")
    assert reason in last_event(authserver)["reason"]


def test_an_inactive_token_gets_the_response_of_a_revoked_one(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    revoked, expired = issue(authserver, client, secret), issue(authserver, client, secret)
    for _ in range(2):
        assert post(authserver, (client.client_id, secret), token=revoked).status_code == 200
    assert last_event(authserver)["reason"] == "revoked"
    assert last_event(authserver)["jti"] == read_unverified_claims(revoked)["jti"]
    clock.advance(300 + LEEWAY)
    assert post(authserver, (client.client_id, secret), token=expired).status_code == 200
    assert last_event(authserver)["reason"] == f"expired {LEEWAY} s ago"


def test_a_token_with_an_exchanged_segment_is_invalid(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    key = authserver.services.keys.ring().signing_key
    claims = read_unverified_claims(token)
    forged = {
        token[:-8] + "AAAAAAAA": "signature does not match",
        key.sign("JWT", claims): "not an access token signed with a published key",
        key.sign("at+jwt", {**claims, "iss": "https://evil.example"}): "iss is https://evil.example, not",
        key.sign("at+jwt", {**claims, "exp": claims["iat"] + 3601}): "the lifetime is 3601 s",
        key.sign("at+jwt", {**claims, "cnf": {"jkt": "x"}}): "the token is bound to a key",
        key.sign("at+jwt", {**claims, "nbf": 1}): "the token has nbf",
        key.sign("at+jwt", {**claims, "scope": 7}): "scope is not a non-empty string",
        key.sign("at+jwt", {name: value for name, value in claims.items() if name != "status"}): "no status in a list",
        key.sign("at+jwt", {**claims, "status": {"status_list": {"idx": 1, "uri": "x"}}}): "no status in a list",
    }
    for text, reason in forged.items():
        assert post(authserver, (client.client_id, secret), token=text).status_code == 200
        assert reason in last_event(authserver)["reason"]
    assert live(authserver, token)


def test_an_unauthenticated_revocation_is_refused(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    for basic in (None, (client.client_id, "gths_wrong"), ("agent_unknown", secret)):
        response = post(authserver, basic, token=token)
        assert (response.status_code, response.json["error"]) == (401, "invalid_client")
    assert live(authserver, token)
    assert last_event(authserver)["actor"] == "claimed:agent_unknown"
    assert post(authserver, (client.client_id, secret), token=token).status_code == 200
    assert not live(authserver, token)


def test_a_revocation_without_a_token_says_what_to_send(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    response = post(authserver, (client.client_id, secret), token_type_hint="access_token")
    assert (response.status_code, response.json["error"]) == (400, "invalid_request")
    assert "token is missing" in response.json["error_description"]
    assert last_event(authserver)["actor"] == client.client_id


@pytest.mark.threat("T-073")
@pytest.mark.both_databases
def test_an_assertion_spent_at_the_token_endpoint_revokes_nothing(authserver: AuthServer) -> None:
    """Replay across endpoints (hydra GHSA-3p3g-vpw6-4w66)."""
    client = KeyClient(authserver, SigningKey.generate("ES256"))
    assertion = client.assertion()
    token = client.post(assertion).json["access_token"]
    form = {"token": token, "client_assertion_type": ASSERTION_TYPE}
    refused = post(authserver, None, **form, client_assertion=assertion)
    assert (refused.status_code, live(authserver, token)) == (401, True)
    accepted = post(authserver, None, **form, client_assertion=client.assertion())
    assert (accepted.status_code, live(authserver, token)) == (200, False)


@pytest.mark.both_databases
def test_revocation_is_503_without_its_database(authserver: AuthServer) -> None:
    """RFC 7009 2.2.1: a 503 means that the token is still active."""
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    authserver.take_database_away()
    response = post(authserver, (client.client_id, secret), token=token)
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")


@pytest.fixture
def issued(shell: Shell) -> dict[str, str]:
    client_id = shell.json(*CREATE)["client_id"]
    issued: dict[str, str] = shell.json("token", "issue", "--client", client_id, "--resource", RESOURCE)
    return {**issued, "client_id": client_id}


def inspect_exit_code(shell: Shell, token: str) -> int:
    return CliRunner().invoke(main, ["token", "inspect"], env=shell.environment, input=token).exit_code


@pytest.mark.both_databases
def test_an_admin_revokes_by_token_jti_or_client(shell: Shell, issued: dict[str, str]) -> None:
    client_id = issued["client_id"]
    again = ("token", "issue", "--client", client_id, "--resource", RESOURCE)
    second, third = shell.json(*again), shell.json(*again)
    assert inspect_exit_code(shell, issued["access_token"]) == 0
    done = CliRunner().invoke(main, ["token", "revoke"], env=shell.environment, input=issued["access_token"])
    assert (done.exit_code, issued["access_token"] in done.output) == (0, False)
    assert inspect_exit_code(shell, issued["access_token"]) == 1
    assert shell.json("token", "revoke", "--jti", second["jti"])["client_id"] == client_id
    assert (inspect_exit_code(shell, second["access_token"]), inspect_exit_code(shell, third["access_token"])) == (1, 0)
    shell.text("token", "revoke", "--client", client_id)
    assert inspect_exit_code(shell, third["access_token"]) == 1
    assert inspect_exit_code(shell, shell.json(*again)["access_token"]) == 0
    events = shell.json("audit", "--action", "token.revoke")
    assert [event["object"] for event in events] == [client_id] * 3
    of_the_second = [event["action"] for event in shell.json("audit", "--jti", second["jti"])]
    assert of_the_second == ["token.issue", "token.revoke"]


def test_an_impossible_revocation_is_refused_with_a_remediation(shell: Shell, issued: dict[str, str]) -> None:
    assert "not both" in shell.refusal("token", "revoke", "--jti", "a", "--client", "b", code=2)
    assert "did not issue a token with that jti" in shell.refusal("token", "revoke", "--jti", "a")
    assert "No active token" in shell.refusal("token", "revoke", "--jti", f"{'0' * 12}.1.{'a' * 22}")
    assert "There is no client" in shell.refusal("token", "revoke", "--client", "agent_x")
    for text, told in (("abc", "truncated"), ("", "token revoke < token.txt"), (" gths_x ", "a client secret")):
        mistaken = CliRunner().invoke(main, ["token", "revoke"], env=shell.environment, input=text)
        assert mistaken.exit_code == 1
        assert told in mistaken.stderr
    unknown = CliRunner().invoke(main, ["token", "revoke"], env=shell.environment, input="a.b.c")
    assert unknown.exit_code == 1
    assert "token inspect" in unknown.output
    assert inspect_exit_code(shell, issued["access_token"]) == 0


def test_enabling_an_enabled_client_revokes_no_token(shell: Shell, issued: dict[str, str]) -> None:
    shell.text("client", "enable", issued["client_id"])
    assert inspect_exit_code(shell, issued["access_token"]) == 0
    shell.text("client", "disable", issued["client_id"])
    shell.text("client", "enable", issued["client_id"])
    assert inspect_exit_code(shell, issued["access_token"]) == 1


@pytest.mark.both_databases
@pytest.mark.parametrize("end", ["disable", "delete"])
def test_a_client_that_is_disabled_or_deleted_loses_its_tokens(shell: Shell, issued: dict[str, str], end: str) -> None:
    assert inspect_exit_code(shell, issued["access_token"]) == 0
    ended = shell.run("client", end, issued["client_id"], *(["--yes"] if end == "delete" else []))
    assert "token endpoint within one second" in ended.stderr
    assert "every resource server by its next poll" in ended.stderr
    assert inspect_exit_code(shell, issued["access_token"]) == 1
