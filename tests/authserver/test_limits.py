"""Limits of the authorization server: 429 for token requests, and in place of the 401 of a failed authentication."""

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.assertions import ASSERTION_TYPE, KeyClient
from support.authserver import FORM, OTHER_RESOURCE, RESOURCE, AuthServer, basic_header, token_form
from support.clock import FakeClock
from support.databases import Template
from support.http_client import lifespan
from support.logs import logging_put_back
from support.refused_clients import assert_invalid_client
from werkzeug.test import TestResponse

from gatehouse.authserver.credentials import resource_credentials
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SpentAssertionRow, audit_event
from gatehouse.authserver.endpoints.token import ACTION
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.audit.events import AuditAction, find_events
from gatehouse.shared.service.logs import configure_logs

WRONG = "gths_wrong"


@pytest.fixture
def limited(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """A server of one worker with the default limits."""
    server = AuthServer(
        tmp_path / "authserver",
        authserver_template,
        clock,
        workers=1,
        limit_authentication_failures="10/minute",
        limit_token_requests="60/minute",
    )
    yield server
    server.close()


@pytest.fixture
def few(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """A server of one worker that allows two requests a minute at each endpoint."""
    names = ("token_requests", "revocations", "introspections")
    few = {f"limit_{name}": "2/minute" for name in names}
    server = AuthServer(tmp_path / "authserver", authserver_template, clock, workers=1, **few)
    yield server
    server.close()


def assert_limited(response: TestResponse, wait: int) -> None:
    assert response.status_code == 429, response.text
    assert response.json["error"] == "temporarily_unavailable"
    assert response.json["error_description"] == f"Too many requests. Wait {wait} s, then try again."
    assert response.json["request_id"] == response.headers["X-Request-Id"]
    assert response.headers["Retry-After"] == str(wait)
    assert response.headers["Cache-Control"] == "no-store"
    assert "WWW-Authenticate" not in response.headers


@pytest.mark.divergence("D-70")
def test_the_61st_token_request_of_a_client_in_a_minute_is_429(limited: AuthServer, clock: FakeClock) -> None:
    client, secret = limited.create_client()
    other, other_secret = limited.create_client()
    for _ in range(60):
        assert limited.post_token(basic=(client.client_id, secret)).status_code == 200
        clock.advance(0.25)
    assert_limited(limited.post_token(basic=(client.client_id, secret)), 45)
    assert limited.post_token(basic=(other.client_id, other_secret)).status_code == 200
    clock.advance(45)
    assert limited.post_token(basic=(client.client_id, secret)).status_code == 200


def test_a_request_that_is_refused_after_authentication_counts(limited: AuthServer) -> None:
    client, secret = limited.create_client()
    for _ in range(60):
        response = limited.post_token(token_form(scope="org:read"), (client.client_id, secret))
        assert response.json["error"] == "invalid_scope"
    assert_limited(limited.post_token(token_form(scope="org:read"), (client.client_id, secret)), 60)


def test_a_client_with_a_key_is_limited_like_others(limited: AuthServer) -> None:
    client = KeyClient(limited, SigningKey.generate("ES256"))
    for _ in range(60):
        client.accepted()
    assert_limited(client.post(client.assertion()), 60)


def test_past_10_failures_a_429_takes_the_place_of_the_401(limited: AuthServer, clock: FakeClock) -> None:
    client, secret = limited.create_client()
    for _ in range(10):
        assert_invalid_client(limited.post_token(basic=(client.client_id, WRONG)))
        clock.advance(1)
    assert_limited(limited.post_token(basic=(client.client_id, WRONG)), 50)
    assert limited.post_token(basic=(client.client_id, secret)).status_code == 200
    clock.advance(50)
    assert_invalid_client(limited.post_token(basic=(client.client_id, WRONG)))


def introspect(server: AuthServer, basic: tuple[str, str]) -> TestResponse:
    return server.http.post("/introspect", headers={"Authorization": basic_header(*basic)}, content_type=FORM)


def revoke(server: AuthServer, basic: tuple[str, str]) -> TestResponse:
    return server.http.post("/revoke", headers={"Authorization": basic_header(*basic)}, content_type=FORM)


def revoke_by_assertion(client: KeyClient, assertion: str) -> TestResponse:
    form = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion, "token": "unknown"}
    return client.server.http.post("/revoke", data=form)


def spent(server: AuthServer) -> int:
    """Return how many assertions were used."""
    with server.services.database.read() as session:
        return session.query(SpentAssertionRow).count()


@pytest.mark.parametrize("send", [KeyClient.post, revoke_by_assertion], ids=["/token", "/revoke"])
def test_an_assertion_past_the_limit_can_be_sent_again(
    few: AuthServer, clock: FakeClock, send: Callable[[KeyClient, str], TestResponse]
) -> None:
    client = KeyClient(few, SigningKey.generate("ES256"))
    assert [send(client, client.assertion()).status_code for _ in range(2)] == [200, 200]
    limited = client.assertion()
    for _ in range(3):
        assert_limited(send(client, limited), 60)
    assert spent(few) == 2, "no row for what is limited"
    clock.advance(60)
    assert send(client, limited).status_code == 200
    client.refused(send(client, limited), "assertion: jti was used before")


def test_revocations_of_a_client_are_limited(few: AuthServer, clock: FakeClock) -> None:
    client, secret = few.create_client()
    other, other_secret = few.create_client()
    for _ in range(2):
        assert revoke(few, (client.client_id, secret)).status_code == 400, "authenticated, without a token"
    assert_limited(revoke(few, (client.client_id, secret)), 60)
    assert revoke(few, (other.client_id, other_secret)).status_code == 400
    assert few.post_token(basic=(client.client_id, secret)).status_code == 200, "token requests have their own limit"
    [*_, last] = few.audit(client=client.client_id, action=AuditAction.TOKEN_REVOKE)
    assert last["reason"] == "exceeds the limit revocations of 2/minute"
    assert "raise AUTHSERVER_LIMIT_REVOCATIONS" in last["detail"]["remediation"]
    clock.advance(60)
    assert revoke(few, (client.client_id, secret)).status_code == 400


def test_introspections_of_a_resource_are_limited(few: AuthServer) -> None:
    few.add_resource(OTHER_RESOURCE)
    keys = few.services.keys.ring()
    with few.services.database.write() as session:
        create = partial(resource_credentials.create_credential, session, few.admin, keys)
        created = [create(RESOURCE), create(RESOURCE), create(OTHER_RESOURCE)]
    first, second, other = [(credential.credential_id, secret) for credential, secret in created]
    assert introspect(few, first).status_code == 400, "authenticated, without a token"
    assert introspect(few, second).status_code == 400
    assert_limited(introspect(few, first), 60)
    assert introspect(few, other).status_code == 400


def test_failures_count_at_every_endpoint_that_authenticates(limited: AuthServer) -> None:
    client, _ = limited.create_client()
    for _ in range(5):
        assert limited.post_token(basic=(client.client_id, WRONG)).status_code == 401
        assert revoke(limited, (client.client_id, WRONG)).status_code == 401
    assert_limited(revoke(limited, (client.client_id, WRONG)), 60)
    assert_limited(introspect(limited, (client.client_id, WRONG)), 60)
    keys = limited.services.keys.ring()
    with limited.services.database.write() as session:
        created, secret = resource_credentials.create_credential(session, limited.admin, keys, RESOURCE)
    for _ in range(10):
        assert introspect(limited, (created.credential_id, WRONG)).status_code == 401
    assert_limited(introspect(limited, (created.credential_id, WRONG)), 60)
    assert introspect(limited, (created.credential_id, secret)).status_code == 400, "authenticated, without a token"


@pytest.mark.parametrize("basic", [None, ("agent_nobody", WRONG)], ids=["no credential", "unknown client"])
def test_failures_without_a_client_count_as_well(limited: AuthServer, basic: tuple[str, str] | None) -> None:
    for _ in range(10):
        assert limited.post_token(basic=basic).status_code == 401
    assert_limited(limited.post_token(basic=basic), 60)


def test_other_refusals_are_not_limited(limited: AuthServer) -> None:
    for _ in range(100):
        assert limited.http.get("/nope").status_code == 404
        assert limited.http.get("/.well-known/jwks.json").status_code == 200
        assert limited.http.get("/livez").status_code == 200


def events(server: AuthServer, client_id: str) -> list[dict[str, Any]]:
    rows = server.audit(client=client_id, action=ACTION, limit=1000)
    return [row for row in rows if row["outcome"] == "refused"]


@pytest.mark.threat("T-150")
def test_the_audit_log_has_the_first_429_and_the_number_of_the_others(limited: AuthServer, clock: FakeClock) -> None:
    client, secret = limited.create_client()
    basic = client.client_id, secret
    for _ in range(60):
        assert limited.post_token(basic=basic).status_code == 200
    refused = [limited.post_token(basic=basic) for _ in range(30)]
    [first] = events(limited, client.client_id)
    assert first["request_id"] == refused[0].json["request_id"]
    assert first["reason"] == "exceeds the limit token_requests of 60/minute"
    about = {"limit": "token_requests", "allowed": "60/minute", "address": "unknown"}
    assert first["detail"] == {
        "error": "temporarily_unavailable",
        "remediation": "Let the client send fewer requests, or raise AUTHSERVER_LIMIT_TOKEN_REQUESTS.",
        **about,
    }
    clock.advance(60)
    for _ in range(61):
        last = limited.post_token(basic=basic)
    assert_limited(last, 60)
    [_, number] = events(limited, client.client_id)
    assert number["detail"] == {**about, "count": 29}
    assert number["reason"] == "further requests exceeded the limit token_requests"


def test_the_log_has_the_request_id_of_each_429(limited: AuthServer, capfd: pytest.CaptureFixture[str]) -> None:
    client, secret = limited.create_client()
    with logging_put_back():
        configure_logs("json")
        responses = [limited.post_token(basic=(client.client_id, secret)) for _ in range(65)]
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    refused = [response.json["request_id"] for response in responses if response.status_code == 429]
    assert len(refused) == 5
    assert [line["request_id"] for line in lines if line["status"] == 429] == refused
    assert {line.get("reason") for line in lines} == {None, "exceeds the limit token_requests of 60/minute"}


def test_the_numbers_are_written_when_the_server_stops(
    tmp_path: Path, authserver_template: Template, clock: FakeClock
) -> None:
    server = AuthServer(tmp_path / "as", authserver_template, clock, workers=1, limit_token_requests="1/minute")
    client, secret = server.create_client()
    with lifespan(server.app):
        for _ in range(5):
            server.post_token(basic=(client.client_id, secret))
    with closing(Database(server.settings.database)) as database, database.read() as session:
        rows = find_events(session.connection(), audit_event, client=client.client_id, action=ACTION)
    assert [row["detail"].get("count") for row in rows] == [None, None, 3]


@pytest.mark.parametrize(
    ("trusted", "sent", "shown"),
    [("", "198.51.100.9, 192.0.2.1", "10.0.0.7"), ("10.0.0.7", "198.51.100.9, 192.0.2.1", "192.0.2.1")],
    ids=["no trusted proxy", "trusted proxy"],
)
def test_failures_are_counted_by_source_address(
    tmp_path: Path, authserver_template: Template, clock: FakeClock, trusted: str, sent: str, shown: str
) -> None:
    limits = {"workers": 1, "limit_authentication_failures": "1/minute", "trusted_proxies": trusted}
    server = AuthServer(tmp_path / "as", authserver_template, clock, **limits)
    with closing(server):
        headers = {"Authorization": basic_header("agent_nobody", WRONG), "X-Forwarded-For": sent}
        responses = [
            server.http.post(
                "/token",
                data=token_form(),
                headers={**headers, **changed},
                environ_overrides={"REMOTE_ADDR": peer},
            )
            for peer, changed in (
                ("10.0.0.7", {}),
                ("10.0.0.7", {}),
                ("10.0.0.8", {}),
                ("10.0.0.7", {"X-Forwarded-For": "192.0.2.2"}),
            )
        ]
        assert [response.status_code for response in responses] == [401, 429, 401, 401 if trusted else 429]
        [first, *_] = [row for row in server.audit(action=ACTION) if "limit" in row["detail"]]
    assert first["detail"]["address"] == shown


def test_a_429_in_place_of_a_401_names_the_failed_check(limited: AuthServer) -> None:
    client, _ = limited.create_client()
    for _ in range(12):
        last = limited.post_token(basic=(client.client_id, WRONG))
    rows = events(limited, client.client_id)
    assert len(rows) == 11
    assert rows[-1]["reason"] == "exceeds the limit authentication_failures of 10/minute; without it: wrong secret"
    assert rows[-1]["actor"] == f"claimed:{client.client_id}"
    assert last.status_code == 429
