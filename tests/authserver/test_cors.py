"""Browser clients: a page of an allowed origin discovers the server, obtains a token, and can read every answer."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update
from support.authserver import FORM, AuthServer
from support.clock import FakeClock
from support.databases import Template
from werkzeug.test import TestResponse

from gatehouse.authserver.db.models import ClientRow

PAGE = "https://app.example.com"
DISCOVERY = "/.well-known/oauth-authorization-server"
JWKS = "/.well-known/jwks.json"
PATHS = [DISCOVERY, JWKS, "/token"]
REQUESTED = "authorization,content-type,mcp-protocol-version"


@pytest.fixture
def server(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """An authorization server that PAGE may call."""
    server = AuthServer(tmp_path / "as", authserver_template, clock, allowed_origins=PAGE)
    yield server
    server.close()


def preflight(server: AuthServer, path: str, origin: str = PAGE, **environ: Any) -> TestResponse:
    asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": REQUESTED}
    return server.http.options(path, headers={"Origin": origin, **asks}, environ_overrides=environ)


def cors_headers(response: TestResponse) -> set[str]:
    return {name for name in response.headers.keys() if name.lower().startswith("access-control-")}  # noqa: SIM118


def assert_readable(response: TestResponse) -> None:
    """Check that a browser lets the page read the response."""
    assert response.headers.getlist("Access-Control-Allow-Origin") == [PAGE]
    assert response.headers["Vary"] == "Origin"
    assert {"WWW-Authenticate", "X-Request-Id"} <= set(response.headers["Access-Control-Expose-Headers"].split(", "))
    assert "Access-Control-Allow-Credentials" not in response.headers


@pytest.mark.parametrize("path", PATHS)
def test_a_preflight_is_answered_without_credentials_or_an_audit_event(server: AuthServer, path: str) -> None:
    response = preflight(server, path)
    assert (response.status_code, response.data, "Content-Length" in response.headers) == (204, b"", False)
    assert_readable(response)
    assert set(REQUESTED.split(",")) <= set(response.headers["Access-Control-Allow-Headers"].lower().split(", "))
    assert response.headers["Access-Control-Allow-Methods"] == ("POST" if path == "/token" else "GET")
    assert server.audit(request_id=response.headers["X-Request-Id"]) == []
    assert server.audit(action="http.request") == []


@pytest.mark.threat("T-137")
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", f"{PAGE}.evil.example", "http://app.example.com", "*"]
)
def test_a_preflight_of_another_origin_is_refused(server: AuthServer, path: str, origin: str) -> None:
    assert preflight(server, path).status_code == 204
    response = preflight(server, path, origin)
    assert (response.status_code, cors_headers(response), response.headers["Vary"]) == (403, set(), "Origin")
    [event] = server.audit(request_id=response.json["request_id"])
    assert (event["object"], event["reason"]) == (path, f"Origin: {origin}")
    assert "AUTHSERVER_ALLOWED_ORIGINS" in event["detail"]["remediation"]


def test_no_page_may_call_unless_a_setting_names_it(authserver: AuthServer) -> None:
    for origin in (PAGE, "https://as.example.com", "null", ""):
        response = preflight(authserver, "/token", origin)
        assert (response.status_code, cors_headers(response)) == (403, set())


@pytest.mark.threat("T-137")
@pytest.mark.parametrize("origin", ["https://evil.example", "null", f"{PAGE},{PAGE}"])
def test_a_page_of_another_origin_cannot_read_an_answer(server: AuthServer, origin: str) -> None:
    client, secret = server.create_client()
    for sent, readable in ((PAGE, True), (origin, False)):
        response = server.post_token(basic=(client.client_id, secret), headers={"Origin": sent})
        assert (response.status_code, bool(cors_headers(response))) == (200, readable)
        assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize(
    ("status", "request_changes"),
    [
        (200, {}),
        (400, {"query": "a=b"}),
        (400, {"form": {"grant_type": "password"}}),
        (401, {"basic": ("nobody", "wrong")}),
        (413, {"form": b"x" * (64 * 1024 + 1)}),
    ],
)
def test_a_page_can_read_every_answer_of_the_token_endpoint(
    server: AuthServer, status: int, request_changes: dict[str, Any]
) -> None:
    client, secret = server.create_client()
    arguments = {"basic": (client.client_id, secret), **request_changes}
    response = server.post_token(**arguments, headers={"Origin": PAGE})
    assert response.status_code == status
    assert_readable(response)
    without = server.post_token(**arguments)
    assert (without.status_code, cors_headers(without), without.headers["Vary"]) == (status, set(), "Origin")


def test_a_page_can_read_the_405_and_a_failure(server: AuthServer) -> None:
    client, secret = server.create_client()
    assert_readable(server.http.get("/token", headers={"Origin": PAGE}))
    with server.services.database.engine.begin() as connection:
        connection.execute(update(ClientRow).values(claims="not JSON"))
    response = server.post_token(basic=(client.client_id, secret), headers={"Origin": PAGE})
    assert response.status_code == 500
    assert_readable(response)


def test_a_page_can_read_the_503_of_an_outage(server: AuthServer) -> None:
    client, secret = server.create_client()
    server.take_database_away()
    response = server.post_token(basic=(client.client_id, secret), headers={"Origin": PAGE})
    assert response.status_code == 503
    assert_readable(response)


@pytest.mark.parametrize("path", [DISCOVERY, JWKS])
def test_a_page_can_read_metadata_and_keys(server: AuthServer, path: str) -> None:
    response = server.http.get(path, headers={"Origin": PAGE})
    assert response.status_code == 200
    assert_readable(response)
    without = server.http.get(path)
    assert (cors_headers(without), without.headers["Vary"]) == (set(), "Origin")


def test_a_page_can_read_that_the_key_set_has_not_changed(server: AuthServer) -> None:
    etag = server.http.get(JWKS).headers["ETag"]
    response = server.http.get(JWKS, headers={"Origin": PAGE, "If-None-Match": etag})
    assert response.status_code == 304
    assert_readable(response)


@pytest.mark.parametrize("path", ["/introspect", "/revoke", "/authorize", "/status-lists", "/livez", "/none"])
def test_pages_cannot_call_other_endpoints(server: AuthServer, path: str) -> None:
    """Resource servers, admins and programs call them."""
    response = preflight(server, path)
    assert (response.status_code, cors_headers(response)) == (404 if path == "/none" else 405, set())
    assert cors_headers(server.http.get(path, headers={"Origin": PAGE})) == set()
    assert cors_headers(server.http.post(path, headers={"Origin": PAGE}, content_type=FORM)) == set()


@pytest.mark.parametrize("target", ["//token", "/%74oken", "/token/"])
def test_another_spelling_of_a_path_gets_no_headers(server: AuthServer, target: str) -> None:
    response = preflight(server, "/token", RAW_URI=target)
    assert (response.status_code, cors_headers(response)) == (404, set())
