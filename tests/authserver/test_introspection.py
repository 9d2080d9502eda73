"""`POST /introspect` (RFC 7662), and the credentials of resources."""

from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from sqlalchemy import event
from support.authserver import FORM, ISSUER, OTHER_RESOURCE, RESOURCE, AuthServer, basic_header
from support.clock import FakeClock
from support.shell import Shell
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.credentials import resource_credentials, secrets
from gatehouse.authserver.credentials.lifecycle import MAX_GRACE_PERIOD
from gatehouse.authserver.tokens.issue import parse_jti
from gatehouse.authserver.tokens.status_lists import revoke_token
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey, read_unverified_claims
from gatehouse.shared.protocol.redaction import mask

Basic = tuple[str, str]


@pytest.fixture
def credential(authserver: AuthServer) -> Basic:
    """A credential of the resource that the tests' clients are granted."""
    return create_credential(authserver, RESOURCE)


def create_credential(server: AuthServer, resource: str) -> Basic:
    keys = server.services.keys.ring()
    with server.services.database.write() as session:
        created, secret = resource_credentials.create_credential(session, server.admin, keys, resource)
    return created.credential_id, secret


def post(server: AuthServer, basic: Basic | None, **form: str) -> TestResponse:
    headers = {"Authorization": basic_header(*basic)} if basic else {}
    return server.http.post("/introspect", data=form, headers=headers, content_type=FORM)


def issue(server: AuthServer, client: Client, secret: str) -> str:
    token: str = server.post_token(basic=(client.client_id, secret)).json["access_token"]
    return token


def test_an_active_token_is_introspected_with_its_claims(
    authserver: AuthServer, credential: Basic, clock: FakeClock
) -> None:
    client, secret = authserver.create_client("env:read org:read", claims={"workspace_id": "wks_1", "active": "no"})
    token = issue(authserver, client, secret)
    response = post(authserver, credential, token=token, token_type_hint="refresh_token")
    assert (response.status_code, response.headers["Cache-Control"]) == (200, "no-store")
    claims = read_unverified_claims(token)
    assert response.json == {
        "active": True,
        "token_type": "Bearer",
        "iss": ISSUER,
        "sub": client.client_id,
        "client_id": client.client_id,
        "aud": RESOURCE,
        "iat": int(clock()),
        "exp": int(clock()) + 300,
        "jti": claims["jti"],
        "scope": "env:read org:read",
        "status": claims["status"],
        "workspace_id": "wks_1",
    }
    [row] = authserver.audit(action="token.introspect")
    assert (row["actor"], row["object"], row["jti"]) == (credential[0], RESOURCE, claims["jti"])


def inactive_tokens(server: AuthServer, clock: FakeClock) -> dict[str, str]:
    """Return a token for each reason to be inactive, and an active token."""
    client, secret = server.create_client()
    key = server.services.keys.ring().signing_key
    texts = {"expired": issue(server, client, secret)}
    clock.advance(300 + LEEWAY)
    texts |= {name: issue(server, client, secret) for name in ("revoked", "live")}
    claims = read_unverified_claims(texts["live"])
    server.add_resource(OTHER_RESOURCE)
    other, others_secret = server.create_client(resource=OTHER_RESOURCE)
    ended, ended_secret = server.create_client()
    texts |= {
        "for another resource": issue(server, other, others_secret),
        "of a disabled client": issue(server, ended, ended_secret),
        "of a key that is not published": SigningKey.generate("ES256").sign("at+jwt", claims),
        "of another kind": key.sign("JWT", claims),
        "of another issuer": key.sign("at+jwt", {**claims, "iss": "https://evil.example"}),
        "with a lifetime that is never issued": key.sign("at+jwt", {**claims, "exp": claims["iat"] + 3601}),
        "without status": key.sign("at+jwt", {name: claims[name] for name in claims if name != "status"}),
        "of an index that nobody has": key.sign(
            "at+jwt", {**claims, "status": {"status_list": {**claims["status"]["status_list"], "idx": 99_999}}}
        ),
        "without a claim": key.sign("at+jwt", {name: claims[name] for name in claims if name != "jti"}),
        "with another signature": texts["live"][:-8] + "AAAAAAAA",
        "garbage": "garbage",
    }
    index = parse_jti(read_unverified_claims(texts["revoked"])["jti"])
    assert index is not None
    with server.services.database.write() as session:
        revoke_token(session, index.list_id, index.idx)
        set_disabled(session, server.admin, ended.client_id, disabled=True)
    return texts


@pytest.mark.divergence("D-30")
@pytest.mark.threat("T-074")
def test_unknown_foreign_and_inactive_tokens_get_one_response(
    authserver: AuthServer, credential: Basic, clock: FakeClock
) -> None:
    """CVE-2026-37979, CVE-2026-18208: the response reveals nothing about a token for another resource."""
    texts = inactive_tokens(authserver, clock)
    assert post(authserver, credential, token=texts.pop("live")).json["active"] is True
    for name, text in texts.items():
        response = post(authserver, credential, token=text)
        assert (response.status_code, response.data) == (200, b'{"active":false}'), name
    reasons = {row["reason"] for row in authserver.audit(action="token.introspect") if row["outcome"] == "refused"}
    assert reasons >= {"revoked", "the token is for another resource"}
    for start in ("expired", "iss is", "the lifetime is"):
        assert any(reason.startswith(start) for reason in reasons), start
    told = {row["jti"] for row in authserver.audit(action="token.introspect") if row["reason"] == "revoked"}
    assert read_unverified_claims(texts["revoked"])["jti"] in told


@pytest.mark.threat("T-074")
def test_every_introspection_does_the_same_work(authserver: AuthServer, credential: Basic, clock: FakeClock) -> None:
    """The timing side channel, measured as counts: the work does not reveal whether a token is active elsewhere."""
    costs = {}
    texts = inactive_tokens(authserver, clock)
    post(authserver, credential, token=texts["live"])
    for name, text in texts.items():

        def ask(text: str = text) -> None:
            assert post(authserver, credential, token=text).status_code == 200

        costs[name] = cost_of(authserver, ask)
    assert len(set(costs.values())) == 1, costs
    verifications, statements = costs["garbage"]
    assert verifications == 1
    assert statements > 0


def cost_of(server: AuthServer, action: Callable[[], Any]) -> tuple[int, int]:
    """Return how many signatures an action verifies, and how many statements it sends about token status."""
    verifications, statements = 0, []

    def note_call(frame: FrameType, kind: str, _: Any) -> None:
        nonlocal verifications
        verifications += kind == "call" and frame.f_code is jws.verify.__code__

    def note_statement(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(server.services.database.engine, "before_cursor_execute", note_statement)
    try:
        with server.profiled(note_call):
            action()
    finally:
        event.remove(server.services.database.engine, "before_cursor_execute", note_statement)
    return verifications, sum("FROM status_block" in text or "FROM revoked_token" in text for text in statements)


@pytest.mark.divergence("D-30")
def test_only_a_resource_can_introspect(authserver: AuthServer, credential: Basic) -> None:
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    assert post(authserver, credential, token=token).json["active"] is True
    credential_id, credentials_secret = credential
    attempts: list[Basic | None] = [
        None,
        (client.client_id, secret),
        (credential_id, "gtrs_wrong"),
        (credential_id, secret),
        ("rsc_unknown", credentials_secret),
    ]
    bodies = set()
    for basic in attempts:
        response = post(authserver, basic, token=token)
        assert (response.status_code, response.json["error"]) == (401, "invalid_client")
        assert response.headers["WWW-Authenticate"].startswith("Basic")
        bodies.add(response.json["error_description"])
    assert len(bodies) == 1


def test_a_credential_is_accepted_only_by_basic(authserver: AuthServer, credential: Basic) -> None:
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    form = {"client_id": credential[0], "client_secret": credential[1], "token": token}
    assert post(authserver, credential, token=token).status_code == 200
    assert post(authserver, None, **form).status_code == 401
    assert post(authserver, credential, **form).status_code == 400
    assertion = SigningKey.generate("ES256").sign("JWT", {"sub": credential[0]})
    by_assertion = {
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion,
        "token": token,
    }
    assert post(authserver, None, **by_assertion).status_code == 401


@pytest.mark.threat("T-075")
def test_a_resource_credential_cannot_get_or_revoke_a_token(authserver: AuthServer, credential: Basic) -> None:
    client, secret = authserver.create_client()
    token = issue(authserver, client, secret)
    assert post(authserver, credential, token=token).json["active"] is True
    assert authserver.post_token(basic=credential).status_code == 401
    headers = {"Authorization": basic_header(*credential)}
    assert authserver.http.post("/revoke", data={"token": token}, headers=headers).status_code == 401
    assert post(authserver, credential, token=token).json["active"] is True


def test_every_failed_authentication_computes_the_same_digests(authserver: AuthServer, credential: Basic) -> None:
    def digests(basic: Basic) -> int:
        count = 0

        def note(frame: FrameType, kind: str, _: Any) -> None:
            nonlocal count
            count += kind == "call" and frame.f_code is secrets.digest.__code__

        with authserver.profiled(note):
            assert post(authserver, basic, token="x").status_code == 401
        return count

    assert digests((credential[0], "gtrs_wrong")) == digests(("rsc_unknown", "gtrs_wrong")) == 1


def test_a_request_without_a_token_says_what_to_send(authserver: AuthServer, credential: Basic) -> None:
    response = post(authserver, credential, token_type_hint="access_token")
    assert (response.status_code, response.json["error"]) == (400, "invalid_request")
    [row] = authserver.audit(request_id=response.json["request_id"])
    assert row["actor"] == credential[0]


@pytest.mark.both_databases
def test_introspection_is_503_without_its_database(authserver: AuthServer, credential: Basic) -> None:
    assert post(authserver, credential, token="x").status_code == 200
    authserver.take_database_away()
    response = post(authserver, credential, token="x")
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")


@pytest.mark.both_databases
def test_a_rotated_credential_works_until_its_grace_period_ends(
    authserver: AuthServer, credential: Basic, clock: FakeClock
) -> None:
    keys = authserver.services.keys.ring()
    with authserver.services.database.write() as session:
        created, secret = resource_credentials.rotate_credential(
            session, authserver.admin, keys, credential[0], grace_period=60
        )
    for seconds in (0, 59):
        clock.advance(seconds)
        assert post(authserver, credential, token="x").status_code == 200
        assert post(authserver, (created.credential_id, secret), token="x").status_code == 200
    clock.advance(1)
    assert post(authserver, credential, token="x").status_code == 401
    assert post(authserver, (created.credential_id, secret), token="x").status_code == 200


def test_credentials_are_created_rotated_and_listed(shell: Shell) -> None:
    created = shell.json("resource", "credential", "create", RESOURCE)
    assert created["secret"].startswith("gtrs_")
    assert mask(f"it is {created['secret']}.") == "it is [masked]."
    rotated = shell.json("resource", "credential", "rotate", created["credential_id"], "--grace-period", "1h")
    listed = shell.json("resource", "credential", "list")
    assert [known["credential_id"] for known in listed] == [created["credential_id"], rotated["credential_id"]]
    assert [known["expires_at"] is None for known in listed] == [False, True]
    assert all(
        known["prefix"] == secret[:9]
        for known, secret in zip(listed, (created["secret"], rotated["secret"]), strict=True)
    )
    assert "Keep secret now" in shell.run("resource", "credential", "rotate", rotated["credential_id"]).stderr
    assert len(shell.json("resource", "credential", "list")) == 2, (
        "without a grace period, the old one is revoked at once"
    )
    audit_log = shell.text("audit", "--output", "json")
    assert created["secret"] not in audit_log
    assert "resource.credential.rotate" in audit_log


def test_an_invalid_credential_command_is_refused_with_a_remediation(shell: Shell) -> None:
    created = shell.json("resource", "credential", "create", RESOURCE)["credential_id"]
    assert "resource list" in shell.refusal("resource", "credential", "create", "https://nobody.example.com/mcp")
    assert "no resource credential" in shell.refusal("resource", "credential", "rotate", "rsc_x")
    shell.text("resource", "credential", "rotate", created, "--grace-period", "60s")
    assert "replaced before" in shell.refusal("resource", "credential", "rotate", created, "--grace-period", "60s")


@pytest.mark.threat("T-100")
def test_a_credential_can_be_revoked_in_its_grace_period(shell: Shell) -> None:
    """RFC 6819 5.2.3.6: an authorization server may revoke a secret. A grace period lasts for up to 90 days."""
    replaced = shell.json("resource", "credential", "create", RESOURCE)["credential_id"]
    taking_over = shell.json("resource", "credential", "rotate", replaced, "--grace-period", "1h")["credential_id"]
    remediation = f"authserver resource credential revoke {replaced}"
    assert remediation in shell.refusal("resource", "credential", "rotate", replaced)
    assert "--yes" in shell.refusal(*remediation.split()[1:])
    left = shell.json(*remediation.split()[1:], "--yes")
    assert [known["credential_id"] for known in left] == [taking_over]
    assert shell.json(*remediation.split()[1:], "--yes") == left, "repeating it does nothing"
    assert shell.json("resource", "credential", "revoke", taking_over, "--yes") == []
    assert "credential list" in shell.refusal("resource", "credential", "revoke", "rsc_x", "--yes")
    ended = [event["detail"] for event in shell.json("audit", "--action", "resource.credential.revoke")]
    assert ended == [{"credential_id": replaced}, {"credential_id": taking_over}]


def test_a_revoked_credential_stays_refused_if_the_clock_changes(
    authserver: AuthServer, credential: Basic, clock: FakeClock
) -> None:
    assert post(authserver, credential, token="x").status_code == 200
    with authserver.services.database.write() as session:
        resource_credentials.revoke_credential(session, authserver.admin, credential[0])
    clock.advance(1)
    assert post(authserver, credential, token="x").status_code == 401
    clock.advance(-3600)
    assert post(authserver, credential, token="x").status_code == 401


@pytest.mark.threat("T-099")
def test_the_grace_period_of_a_credential_is_bounded(authserver: AuthServer, credential: Basic) -> None:
    keys = authserver.services.keys.ring()
    for grace_period in (-1, MAX_GRACE_PERIOD + 1):
        with (
            pytest.raises(resource_credentials.CommandRefused, match="The grace period is"),
            authserver.services.database.write() as session,
        ):
            resource_credentials.rotate_credential(session, authserver.admin, keys, credential[0], grace_period)
    assert post(authserver, credential, token="x").status_code == 200
