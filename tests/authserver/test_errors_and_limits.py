"""The responses to invalid requests and to failures of the server."""

import io
import re
from typing import Any
from urllib.parse import urlencode

import pytest
from sqlalchemy import update
from support.authserver import FORM, AuthServer, basic_header, token_form
from support.http_client import http_client
from werkzeug.test import TestResponse

from gatehouse.authserver.app import build_app, close_services, create_routes, create_services
from gatehouse.authserver.db.models import ClientRow

LIMIT = 64 * 1024
DESCRIPTION = re.compile(r"[\x20-\x21\x23-\x5b\x5d-\x7e]+", re.ASCII)
"""RFC 6749 5.2: the characters that an error_description may have."""


def assert_json_error(response: TestResponse, status: int, error: str) -> None:
    assert response.status_code == status, response.text
    assert response.content_type == "application/json"
    assert response.json.keys() == {"error", "error_description", "request_id"}
    assert response.json["error"] == error
    assert DESCRIPTION.fullmatch(response.json["error_description"])
    assert response.json["request_id"] == response.headers["X-Request-Id"]
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/", "/nope", "/token/", "/Token", "/introspect/", "/.well-known/", "/static/x"])
def test_an_unknown_path_is_a_404_in_json(authserver: AuthServer, path: str) -> None:
    assert authserver.http.get("/livez").status_code == 200
    for method in ("GET", "POST", "OPTIONS"):
        assert_json_error(authserver.http.open(path, method=method), 404, "invalid_request")


@pytest.mark.threat("T-079")
@pytest.mark.parametrize("path", ["/.well-known//jwks.json", "/.well-known///oauth-authorization-server", "/livez//"])
def test_a_path_with_double_slashes_is_a_404_and_no_redirect(authserver: AuthServer, path: str) -> None:
    """A redirect would contain the Host header of the request."""
    environ = {"RAW_URI": re.sub("/+", "/", path).rstrip("/"), "HTTP_HOST": "evil.example.com"}
    assert authserver.http.get("/livez", environ_overrides=environ).status_code == 200
    environ["RAW_URI"] = path
    response = authserver.http.get("/livez", environ_overrides=environ)
    assert "Location" not in response.headers
    assert_json_error(response, 404, "invalid_request")


def test_another_method_is_a_405_in_json_with_allow(authserver: AuthServer) -> None:
    routes = create_routes(authserver.services)
    assert {"/token", "/revoke", "/introspect", "/livez"} <= routes.keys()
    for path, route in routes.items():
        allowed = {"POST"} if route.method == "POST" else {"GET", "HEAD"}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND"} - allowed:
            response = authserver.http.open(path, method=method)
            assert_json_error(response, 405, "invalid_request")
            assert set(response.headers["Allow"].split(", ")) == allowed


def test_every_response_has_security_headers_and_no_cookie(authserver: AuthServer) -> None:
    for path in ("/livez", "/readyz", "/token", "/authorize", "/nope", "/.well-known/jwks.json"):
        headers = authserver.http.get(path).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert headers["Referrer-Policy"] == "no-referrer"
        assert re.fullmatch("req_[0-9a-f]{24}", headers["X-Request-Id"])
        assert "Set-Cookie" not in headers


def sized_form(server: AuthServer, length: int) -> tuple[bytes, dict[str, str]]:
    client, secret = server.create_client()
    body = b"grant_type=client_credentials&padding="
    return body + b"a" * (length - len(body)), {"Authorization": basic_header(client.client_id, secret)}


@pytest.mark.divergence("D-25")
@pytest.mark.parametrize("chunked", [False, True], ids=["sized", "chunked"])
def test_a_body_over_64_kib_is_refused(authserver: AuthServer, chunked: bool) -> None:
    def post(length: int) -> TestResponse:
        body, headers = sized_form(authserver, length)
        if not chunked:
            return authserver.http.post("/token", data=body, headers=headers, content_type=FORM)
        return authserver.http.post(
            "/token",
            input_stream=io.BytesIO(body),
            headers={**headers, "Transfer-Encoding": "chunked"},
            content_type=FORM,
            environ_overrides={"wsgi.input_terminated": True},
        )

    assert post(LIMIT).status_code == 200
    assert_json_error(post(LIMIT + 1), 413, "invalid_request")
    assert "64 KiB" in post(4 * LIMIT).json["error_description"]


class Untouchable(io.RawIOBase):
    """A body that must not be read."""

    def read(self, size: int = -1) -> Any:
        raise AssertionError("the body was read")


@pytest.mark.parametrize("length", ["65537", "9" * 30, "9" * 5000], ids=["one too long", "30 digits", "5000 digits"])
def test_a_body_with_a_large_content_length_is_not_read(authserver: AuthServer, length: str) -> None:
    environ = {"CONTENT_LENGTH": str(LIMIT), "wsgi.input": Untouchable()}
    read = authserver.http.post("/token", content_type=FORM, environ_overrides=environ)
    assert_json_error(read, 500, "server_error")
    environ["CONTENT_LENGTH"] = length
    response = authserver.http.post("/token", content_type=FORM, environ_overrides=environ)
    assert_json_error(response, 413, "invalid_request")


def break_a_row(server: AuthServer, client_id: str) -> None:
    """Write an invalid row, so that reading it fails unexpectedly."""
    with server.services.database.engine.begin() as connection:
        broken = update(ClientRow).values(claims="SECRET-ROW").where(ClientRow.client_id == client_id)
        connection.execute(broken)


@pytest.mark.divergence("D-25")
def test_an_unexpected_failure_is_a_500_without_a_traceback(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    broken, broken_secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    break_a_row(authserver, broken.client_id)
    response = authserver.post_token(basic=(broken.client_id, broken_secret))
    assert_json_error(response, 500, "server_error")
    for leak in ("Traceback", "SECRET-ROW", "ValueError", "TypeError", "authserver/", broken_secret, broken.client_id):
        assert leak not in response.text
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200


@pytest.mark.divergence("D-25")
@pytest.mark.threat("T-128")
@pytest.mark.both_databases
def test_the_token_endpoint_is_503_without_its_database(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    other, other_secret = authserver.create_client()
    assert authserver.post_token(basic=(other.client_id, other_secret)).status_code == 200
    authserver.take_database_away()
    response = authserver.post_token(basic=(client.client_id, secret))
    assert_json_error(response, 503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) > 0
    for leak in ("sqlite", "psycopg", "postgres", str(authserver.folder), str(authserver.settings.database.database)):
        assert leak not in response.text.lower()


@pytest.mark.threat("T-130")
@pytest.mark.only_on("postgresql")
def test_a_lock_that_is_never_released_is_a_503(authserver: AuthServer) -> None:
    """CWE-400: an abandoned transaction would block a thread for each request."""
    client, secret = authserver.create_client()
    other, other_secret = authserver.create_client()
    url = authserver.settings.database.update_query_dict({"options": "-c lock_timeout=20ms"})
    changed = {"database_url": url.render_as_string(hide_password=False)}
    services = create_services(authserver.settings.model_copy(update=changed), authserver.clock)
    impatient = http_client(build_app(services))

    def post(client_id: str, secret: str) -> TestResponse:
        headers = {"Authorization": basic_header(client_id, secret)}
        return impatient.post("/token", data=token_form(), headers=headers)

    assert post(other.client_id, other_secret).status_code == 200
    with authserver.services.database.engine.begin() as holder:
        holder.exec_driver_sql("LOCK TABLE client")
        response = post(client.client_id, secret)
        assert_json_error(response, 503, "temporarily_unavailable")
        assert int(response.headers["Retry-After"]) > 0
    assert post(client.client_id, secret).status_code == 200
    close_services(services)


@pytest.mark.threat("T-115")
@pytest.mark.both_databases
def test_a_refusal_that_cannot_be_recorded_is_not_sent(authserver: AuthServer) -> None:
    """An attacker who can fill the disk must not be able to guess secrets without a record."""
    assert authserver.post_token({}).status_code == 401
    authserver.take_database_away()
    response = authserver.post_token({})
    assert_json_error(response, 503, "temporarily_unavailable")
    assert "WWW-Authenticate" not in response.headers


@pytest.mark.threat("T-128")
@pytest.mark.both_databases
def test_the_key_set_and_the_metadata_are_served_without_the_database(authserver: AuthServer) -> None:
    before = authserver.http.get("/.well-known/jwks.json").data
    authserver.take_database_away()
    assert authserver.http.get("/.well-known/jwks.json").data == before
    assert authserver.http.get("/.well-known/oauth-authorization-server").status_code == 200


def test_every_refused_token_request_has_the_same_shape(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    basic = (client.client_id, secret)
    assert authserver.post_token(basic=basic).status_code == 200
    refusals = {
        "unsupported_grant_type": authserver.post_token({"grant_type": "password"}, basic),
        "invalid_scope": authserver.post_token(token_form(scope="org:read"), basic),
        "invalid_target": authserver.post_token(token_form(resource="https://other.example.com"), basic),
        "invalid_request": authserver.post_token(b"%", basic),
    }
    for error, response in refusals.items():
        assert_json_error(response, 400, error)
    assert_json_error(authserver.post_token(basic=(client.client_id, "gths_wrong")), 401, "invalid_client")


def test_a_refusal_does_not_echo_the_request(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    basic = (client.client_id, secret)
    assert authserver.post_token(token_form(), basic).status_code == 200
    for parameters in (
        {"scope": "marker:scope"},
        {"scope": 'marker"'},
        {"resource": "https://marker.example"},
        {"resource": "marker"},
        {"client_id": "marker"},
        {"grant_type": "marker"},
    ):
        response = authserver.post_token({**token_form(), **parameters}, basic)
        assert response.status_code in {400, 401}
        assert "marker" not in response.text + str(response.headers)


def test_a_truncated_body_is_refused(authserver: AuthServer) -> None:
    """A truncated form can mean something else than the complete one."""
    client, secret = authserver.create_client(auth_method="client_secret_post")
    body = urlencode(token_form(client_id=client.client_id, client_secret=secret)).encode()

    def post(length: int) -> TestResponse:
        environ = {"CONTENT_LENGTH": str(length), "CONTENT_TYPE": FORM, "wsgi.input": io.BytesIO(body)}
        return authserver.http.open("/token", method="POST", environ_overrides=environ)

    assert post(len(body)).status_code == 200
    assert_json_error(post(len(body) + 1), 400, "invalid_request")
