"""The token endpoint's successful response (RFC 6749 5.1) and the token in it (RFC 9068 2)."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from authlib.oauth2.rfc6749 import AuthorizationServer, OAuth2Request
from sqlalchemy import delete, select
from support.authserver import FORM, ISSUER, RESOURCE, AuthServer, token_form
from support.clock import FakeClock
from support.databases import Template
from support.keys import rotation_of

from gatehouse.authserver.authlib_server import AuthlibServer
from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.models import SigningKeyRow, audit_event
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.keys.store import ensure_keys
from gatehouse.shared.protocol.claims import MAX_LIFETIME


@pytest.fixture
def configured(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[Any]:
    """Run a server with changed settings."""
    servers: list[AuthServer] = []

    def run(**changes: Any) -> AuthServer:
        server = AuthServer(tmp_path / f"server{len(servers)}", authserver_template, clock, **changes)
        servers.append(server)
        return server

    yield run
    for server in servers:
        server.close()


def claims_of(server: AuthServer, client: Client, secret: str, **parameters: str) -> dict[str, Any]:
    response = server.post_token(token_form(**parameters), basic=(client.client_id, secret))
    return server.read_token(response)[1]


def test_the_response_has_exactly_the_members_of_rfc_6749(authserver: AuthServer) -> None:
    client, secret = authserver.create_client("env:read org:read")
    response = authserver.post_token(basic=(client.client_id, secret))
    assert response.status_code == 200
    assert response.content_type == "application/json"
    assert response.json.keys() == {"access_token", "token_type", "expires_in", "scope"}
    assert response.json["token_type"] == "Bearer"
    assert response.json["expires_in"] == 300
    assert response.json["scope"] == "env:read org:read"


def test_the_response_headers_forbid_storing_framing_and_sniffing(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    headers = authserver.post_token(basic=(client.client_id, secret)).headers
    assert headers["Cache-Control"] == "no-store"
    assert headers["Pragma"] == "no-cache"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert headers["Referrer-Policy"] == "no-referrer"
    assert headers["X-Request-Id"].startswith("req_")
    assert "Set-Cookie" not in headers
    assert not [name for name, _ in headers if name.lower().startswith("access-control-")]


def test_every_response_has_its_own_request_id(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    answers = [
        authserver.post_token(basic=(client.client_id, sent), headers={"X-Request-Id": "req_forged"})
        for sent in (secret, secret, "wrong")
    ]
    ids = {answer.headers["X-Request-Id"] for answer in answers}
    assert len(ids) == 3
    assert "req_forged" not in ids
    assert answers[2].json["request_id"] == answers[2].headers["X-Request-Id"]


@pytest.mark.divergence("D-53")
@pytest.mark.both_databases
def test_the_token_has_the_header_and_claims_of_rfc_9068(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client("org:read env:read")
    header, claims = authserver.read_token(authserver.post_token(basic=(client.client_id, secret)))
    assert (header.typ, header.alg) == ("at+jwt", "ES256")
    assert header.kid == authserver.services.keys.ring().signing_key.kid
    reference = claims.pop("status")["status_list"]
    assert reference["uri"].startswith(f"{ISSUER}/status-lists/")
    list_id, idx, unguessable = claims.pop("jti").split(".")
    assert (reference["uri"].rpartition("/")[2], str(reference["idx"])) == (list_id, idx)
    assert len(unguessable) == 22
    assert claims == {
        "iss": ISSUER,
        "sub": client.client_id,
        "client_id": client.client_id,
        "aud": RESOURCE,
        "iat": int(clock()),
        "exp": int(clock()) + 300,
        "scope": "env:read org:read",
    }


def test_no_two_tokens_share_a_jti(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    assert len({claims_of(authserver, client, secret)["jti"] for _ in range(20)}) == 20


@pytest.mark.both_databases
def test_static_claims_are_added_to_the_standard_ones(authserver: AuthServer) -> None:
    client, secret = authserver.create_client(claims={"workspace_id": "wks_1", "team": "data platform"})
    claims = claims_of(authserver, client, secret)
    assert (claims["workspace_id"], claims["team"], claims["sub"]) == ("wks_1", "data platform", client.client_id)


@pytest.mark.divergence("D-36")
@pytest.mark.parametrize(
    ("server_ttl", "client_ttl", "expected"),
    [
        pytest.param(300, None, 300, id="default"),
        pytest.param(120, None, 120, id="server's setting"),
        pytest.param(120, 60, 60, id="client's, shorter"),
        pytest.param(120, 900, 900, id="client's, longer"),
        pytest.param(120, MAX_LIFETIME, MAX_LIFETIME, id="client's, the maximum"),
    ],
)
def test_the_clients_lifetime_overrides_the_servers(
    configured: Any, server_ttl: int, client_ttl: int | None, expected: int
) -> None:
    server = configured(token_ttl=server_ttl)
    client, secret = server.create_client(token_ttl=client_ttl)
    response = server.post_token(basic=(client.client_id, secret))
    claims = server.read_token(response)[1]
    assert response.json["expires_in"] == claims["exp"] - claims["iat"] == expected


@pytest.mark.parametrize("alg", ["ES256", "RS256", "EdDSA"])
def test_tokens_are_signed_with_the_configured_algorithm(configured: Any, clock: FakeClock, alg: str) -> None:
    """The installation has an ES256 key; a key of another algorithm signs once every cache contains it."""
    server = configured(signing_algorithm=alg)
    rotation = rotation_of(server.services, clock)
    rotation.run()
    clock.advance(rotation.policy.lead)
    client, secret = server.create_client()
    header, claims = server.read_token(server.post_token(basic=(client.client_id, secret)))
    assert header.alg == alg
    assert claims["sub"] == client.client_id


@pytest.mark.parametrize(
    ("form", "error", "remediation"),
    [
        pytest.param({"scope": "env:read"}, "invalid_request", "grant_type=client_credentials", id="none"),
        pytest.param({"grant_type": ""}, "invalid_request", "grant_type=client_credentials", id="empty"),
        pytest.param({"grant_type": "password"}, "unsupported_grant_type", "client_credentials", id="password"),
        pytest.param({"grant_type": "refresh_token"}, "unsupported_grant_type", "client_credentials", id="refresh"),
        pytest.param({"grant_type": "CLIENT_CREDENTIALS"}, "unsupported_grant_type", "client_credentials", id="case"),
    ],
)
def test_any_other_grant_type_is_refused_with_a_remediation(
    authserver: AuthServer, form: dict[str, str], error: str, remediation: str
) -> None:
    client, secret = authserver.create_client()
    basic = (client.client_id, secret)
    assert authserver.post_token(token_form(), basic).status_code == 200
    refused = authserver.post_token(form, basic)
    assert refused.status_code == 400
    assert refused.json["error"] == error
    assert remediation in refused.json["error_description"]


def test_only_registered_grant_types_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """What clients send does not fill the memory."""
    server = AuthlibServer(ISSUER)
    asked = []

    def ask(self: AuthlibServer, request: OAuth2Request) -> Any:
        asked.append(request.payload.grant_type)
        return AuthorizationServer.get_token_grant(self, request)

    monkeypatch.setattr(AuthlibServer, "get_token_grant", ask)
    for _ in range(2):
        assert server.find_grant({"grant_type": "client_credentials"}) == "client_credentials"
        with pytest.raises(OAuthError, match="unsupported_grant_type"):
            server.find_grant({"grant_type": "password"})
    assert asked == ["client_credentials", "password", "password"]


@pytest.mark.parametrize(
    "parameters",
    [
        *("", ";", "; charset=UTF-8", ';charset="utf-8"', "; CHARSET=utf8;", "; charset=US-ASCII"),
        *('; charset="us-ascii"', "; charset=ISO-8859-1", ' ; charset="iso-8859-1" ;'),
    ],
)
def test_a_form_may_have_the_label_of_a_charset_that_reads_it_alike(authserver: AuthServer, parameters: str) -> None:
    """All bytes of a percent-encoded form are ASCII."""
    client, secret = authserver.create_client("env:read")
    basic, body = (client.client_id, secret), b"grant_type=client_credentials&scope=env%3Aread"
    for media_type in ("application/x-www-form-urlencoded", "Application/X-WWW-Form-URLencoded"):
        response = authserver.post_token(body, basic, content_type=media_type + parameters)
        assert response.status_code == 200, response.text


def test_utf_8_above_7f_needs_no_other_label(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    basic, body = (client.client_id, secret), b"grant_type=client_credentials&x=%c3%a9"
    for label, status in (("utf-8", 200), ("iso-8859-1", 400), ("us-ascii", 400)):
        response = authserver.post_token(body, basic, content_type=f"{FORM}; charset={label}")
        assert response.status_code == status, response.text


@pytest.mark.parametrize(
    "body",
    [
        *(b"grant_type=client_credentials&", b"&grant_type=client_credentials", b"&&grant_type=client_credentials&&"),
        b"grant_type=client_credentials" + b"&" * 100 + b"scope=env:read&",
    ],
)
def test_empty_pairs_of_a_form_are_skipped(authserver: AuthServer, body: bytes) -> None:
    """WHATWG URL 5.1, step 3.1."""
    client, secret = authserver.create_client("env:read")
    assert authserver.post_token(body, (client.client_id, secret)).status_code == 200
    refused = authserver.post_token(body + b"&grant_type=x", (client.client_id, secret))
    assert (refused.status_code, refused.json["error"]) == (400, "invalid_request")


def test_unknown_and_empty_parameters_are_ignored(authserver: AuthServer) -> None:
    """RFC 6749 3.2: unrecognized parameters are ignored, and one without a value counts as omitted."""
    client, secret = authserver.create_client("env:read org:read")
    form = token_form(scope="", resource="", audience="https://elsewhere.example.com", client_secret="")
    response = authserver.post_token(form, basic=(client.client_id, secret))
    assert authserver.read_token(response)[1]["aud"] == RESOURCE
    assert response.json["scope"] == "env:read org:read"


@pytest.mark.both_databases
def test_an_issued_token_is_recorded_by_its_jti(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    response = authserver.post_token(basic=(client.client_id, secret))
    header, claims = authserver.read_token(response)
    [event] = authserver.audit(jti=claims["jti"])
    assert (event["action"], event["outcome"]) == ("token.issue", "allowed")
    assert (event["actor"], event["object"]) == (client.client_id, RESOURCE)
    assert event["request_id"] == response.headers["X-Request-Id"]
    assert event["detail"] == {"scope": "env:read", "exp": claims["exp"], "kid": header.kid}
    assert event["time"] == int(clock() * 1000)


@pytest.mark.both_databases
def test_a_refusal_is_recorded_before_it_is_sent(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    refused = authserver.post_token(token_form(scope="env:write"), basic=(client.client_id, secret))
    assert refused.json["error"] == "invalid_scope"
    request_id = refused.json["request_id"]
    with authserver.services.database.read() as session:
        columns = audit_event.c.actor, audit_event.c.outcome, audit_event.c.reason
        rows = session.execute(select(*columns).where(audit_event.c.request_id == request_id))
        assert rows.all() == [(client.client_id, "refused", f"not granted at {RESOURCE}: env:write")]


@pytest.mark.parametrize(
    "issuer",
    [
        "https://as.example.com:8443",
        "http://127.0.0.1:9000",
        "http://localhost:9000",
        "http://localhost",
        "http://127.0.0.2:9000",
        "http://[::1]:9000",
    ],
)
def test_tokens_are_issued_for_every_issuer_the_settings_allow(configured: Any, issuer: str) -> None:
    """Authlib checks the transport itself, and must not refuse an issuer that the settings accepted."""
    server = configured(issuer=issuer)
    with server.services.database.write() as session:
        session.execute(delete(SigningKeyRow))
        ensure_keys(session, load_sealing_key(server.settings), issuer, "ES256", server.clock)
    client, secret = server.create_client()
    assert claims_of(server, client, secret)["iss"] == issuer
