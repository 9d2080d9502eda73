"""Attacks on the token endpoint. Each test first sends the same request without the attack."""

import base64
import contextlib
import io
import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import event, update
from support.assertions import ASSERTION_TYPE
from support.authserver import FORM, ISSUER, OTHER_RESOURCE, RESOURCE, AuthServer, basic_header, token_form
from support.logs import logging_put_back
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registry import AUTH_METHODS, Client
from gatehouse.authserver.credentials.secrets import digest
from gatehouse.authserver.db.models import ClientRow, ClientSecretRow
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.settings import LogFormat

BODY = b"grant_type=client_credentials"


class Attacked:
    """A server, one of its clients, and that client's request."""

    def __init__(self, server: AuthServer) -> None:
        self.server = server
        self.client: Client
        self.client, self.secret = server.create_client("env:read org:read")

    @property
    def basic(self) -> tuple[str, str]:
        return self.client.client_id, self.secret

    def accepted(self, response: TestResponse | None = None) -> dict[str, Any]:
        """Return the claims of the token in a response; by default, send the request without the attack."""
        return self.server.read_token(response or self.server.post_token(basic=self.basic))[1]

    def post(self, body: bytes, **named: Any) -> TestResponse:
        return self.server.post_token(body, basic=self.basic, **named)

    def post_header(self, authorization: str) -> TestResponse:
        return self.server.post_token(headers={"Authorization": authorization})


@pytest.fixture
def attacked(authserver: AuthServer) -> Attacked:
    return Attacked(authserver)


def assert_refused(response: TestResponse, error: str, status: int = 400) -> None:
    assert response.status_code == status, response.text
    assert response.json["error"] == error
    assert response.headers["Cache-Control"] == "no-store"


@pytest.mark.divergence("D-41")
@pytest.mark.threat("T-069")
@pytest.mark.parametrize(
    ("once", "again"),
    [
        pytest.param(b"", b"&grant_type=client_credentials", id="same"),
        pytest.param(b"", b"&grant_type=password", id="other"),
        pytest.param(b"&scope=env:read", b"&scope=org:read", id="scope"),
        pytest.param(b"&scope=env:read", b"&scope=", id="second one empty"),
        pytest.param(b"&scope=env:read", b"&%73cope=org:read", id="encoded name"),
        pytest.param(b"&client_id=CLIENT", b"&client_id=CLIENT", id="client_id"),
        pytest.param(b"&unknown=a", b"&unknown=a", id="unknown"),
    ],
)
def test_a_duplicate_parameter_is_refused(attacked: Attacked, once: bytes, again: bytes) -> None:
    """RFC 6749 3.2: parameters must not be included more than once, because parsers differ about which one applies."""

    def post(body: bytes) -> TestResponse:
        return attacked.post(body.replace(b"CLIENT", attacked.client.client_id.encode()))

    attacked.accepted(post(BODY + once))
    assert_refused(post(BODY + once + again), "invalid_request")


@pytest.mark.divergence("D-42")
@pytest.mark.threat("T-069")
@pytest.mark.parametrize("query", ["grant_type=client_credentials", "scope=env%3Aread", "resource=a", "x=y"])
def test_parameters_in_the_query_are_refused(attacked: Attacked, query: str) -> None:
    """RFC 6749 3.2 and 2.3.1: only in the body, because URLs appear in logs and histories."""
    attacked.accepted()
    assert_refused(attacked.post(BODY, query=query), "invalid_request")
    assert_refused(attacked.post(b"", query=query), "invalid_request")


@pytest.mark.divergence("D-42")
def test_credentials_in_the_query_are_refused(attacked: Attacked) -> None:
    """RFC 6749 2.3.1: the parameters must not be included in the request URI."""
    client, secret = attacked.server.create_client(auth_method="client_secret_post")
    credentials = {"client_id": client.client_id, "client_secret": secret}
    attacked.accepted(attacked.server.post_token(token_form(**credentials)))
    query = f"client_id={client.client_id}&client_secret={secret}"
    assert_refused(attacked.server.post_token(token_form(), query=query), "invalid_request")


@pytest.mark.threat("T-069")
@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        pytest.param("application/json", b'{"grant_type": "client_credentials"}', id="JSON"),
        pytest.param("application/json", BODY, id="form labelled JSON"),
        pytest.param("multipart/form-data; boundary=b", BODY, id="multipart"),
        pytest.param("text/plain", BODY, id="text"),
        pytest.param("", BODY, id="none"),
        pytest.param(f"{FORM}, application/json", BODY, id="two"),
        pytest.param(f"{FORM}x", BODY, id="longer"),
        pytest.param(f"{FORM}; charset=utf-16", BODY, id="UTF-16"),
        pytest.param(f"{FORM}; charset=utf-7", BODY, id="UTF-7"),
        pytest.param(f"{FORM}; charset=iso-8859-15", BODY, id="Latin 9"),
        pytest.param(f"{FORM}; charset=utf-8; charset=utf-16", BODY, id="two character sets"),
        pytest.param(f"{FORM}; charset=utf-8; CHARSET=utf-8", BODY, id="one character set twice"),
        pytest.param(f"{FORM}; charset", BODY, id="no character set"),
        pytest.param(f'{FORM}; charset="utf-8', BODY, id="open quote"),
        pytest.param(f"{FORM}; charset = utf-8", BODY, id="spaces around the equals sign"),
        pytest.param(f"{FORM}; boundary=b", BODY, id="another parameter"),
        pytest.param(f"{FORM}; charset=iso-8859-1", BODY + b"&scope=%e9", id="Latin 1 above 7F"),
        pytest.param(f"{FORM}; charset=us-ascii", BODY + b"&x=%C3%A9", id="ASCII above 7F"),
    ],
)
def test_a_body_that_is_not_a_utf_8_form_is_refused(attacked: Attacked, content_type: str, body: bytes) -> None:
    """RFC 6749 appendix B."""
    attacked.accepted(attacked.post(BODY, content_type=f"{FORM}; charset=utf-8"))
    assert_refused(attacked.post(body, content_type=content_type), "invalid_request")


@pytest.mark.parametrize(
    "tail",
    [
        pytest.param(b"&scope=%ff", id="not UTF-8"),
        pytest.param(b"&scope=\xff", id="raw byte"),
        pytest.param(b"&scope=%ed%a0%80", id="surrogate"),
        pytest.param(b"&scope=%c0%af", id="overlong"),
        pytest.param(b"&scope=env:read%00", id="NUL in a value"),
        pytest.param(b"&sc%00ope=env:read", id="NUL in a name"),
        pytest.param(b"&scope", id="no equals sign"),
        pytest.param(b"&&scope", id="no equals sign after an empty pair"),
        pytest.param(b"".join(b"&%d=" % n for n in range(10_000)), id="10000 parameters"),
        pytest.param(b"".join(b"&resource=" + RESOURCE.encode() for _ in range(100)), id="100 resources"),
    ],
)
def test_an_ambiguous_form_is_refused(attacked: Attacked, tail: bytes) -> None:
    """CWE-436, and CVE-2011-4885 for the number of parameters."""
    attacked.accepted(attacked.post(BODY + b"&scope=env:read"))
    assert_refused(attacked.post(BODY + tail), "invalid_request")


def encoded(text: str | bytes) -> str:
    return base64.b64encode(text if isinstance(text, bytes) else text.encode()).decode()


def padded_credentials(attacked: Attacked) -> str:
    """Return the client's credentials, encoded with base64 padding."""
    value = encoded(f"{attacked.client.client_id.replace('_', '%5F')}:{attacked.secret}")
    assert value.endswith("=")
    return value


@pytest.mark.divergence("D-43", "D-44")
@pytest.mark.threat("T-068")
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda value: value[:8] + "!" + value[8:], id="junk inside"),
        pytest.param(lambda value: value[:8] + "\t" + value[8:], id="tab inside"),
        pytest.param(lambda value: value + "=", id="more padding"),
        pytest.param(lambda value: value.rstrip("="), id="less padding"),
        pytest.param(lambda value: value + "QQ==", id="data after the padding"),
        pytest.param(lambda value: f"{value}, Basic {value}", id="two headers, folded into one"),
        pytest.param(lambda value: f"{value},{value}", id="two credentials"),
        pytest.param(lambda value: encoded(base64.b64decode(value).replace(b":", b"")), id="no colon"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"\xff"), id="not UTF-8"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"%FF"), id="not UTF-8, encoded"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + "é".encode()), id="not form-encoded"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"%"), id="truncated percent-encoding"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"%0G"), id="broken percent-encoding"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"\x00"), id="NUL"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"%00"), id="NUL, encoded"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"\n"), id="newline"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"+"), id="plus, which is a space"),
        pytest.param(lambda value: encoded(base64.b64decode(value) + b"a" * 600), id="long"),
    ],
)
def test_malformed_basic_credentials_are_refused(attacked: Attacked, spoil: Callable[[str], str]) -> None:
    """RFC 7617 2, RFC 4648 3; fixed in oidc-provider 9.11.4. Authlib by default responds 200 or 500 to some."""
    value = padded_credentials(attacked)
    attacked.accepted(attacked.post_header(f"Basic {value}"))
    assert_refused(attacked.post_header(f"Basic {spoil(value)}"), "invalid_client", 401)


@pytest.mark.divergence("D-44")
@pytest.mark.threat("T-068")
def test_base64_with_nonzero_trailing_bits_is_refused(attacked: Attacked) -> None:
    """RFC 4648 3.5: a second encoding of the same credentials would bypass a filter that blocks the first."""
    value = padded_credentials(attacked)
    attacked.accepted(attacked.post_header(f"Basic {value}"))
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    last = value.rstrip("=")[-1]
    loose = value.rstrip("=")[:-1] + alphabet[alphabet.index(last) + 1] + "=" * value.count("=")
    assert loose != value
    assert base64.b64decode(loose) == base64.b64decode(value)
    assert_refused(attacked.post_header(f"Basic {loose}"), "invalid_client", 401)


@pytest.mark.divergence("D-44")
@pytest.mark.threat("T-068")
def test_a_plus_in_basic_credentials_is_a_space(attacked: Attacked) -> None:
    """RFC 6749 2.3.1 and appendix B: values in Basic are form-encoded. The audit log shows the decoded client_id."""
    keys = attacked.server.services.keys.ring()
    with attacked.server.services.database.engine.begin() as connection:
        stored = digest(keys.peppers[keys.newest_pepper], "gths_a+b c")
        connection.execute(update(ClientSecretRow).values(digest=stored))
    attacked.accepted(attacked.server.post_token(basic=(attacked.client.client_id, "gths_a%2Bb+c")))
    for secret in ("gths_a+b+c", "gths_a%2Bb%2Bc"):
        response = attacked.server.post_token(basic=(attacked.client.client_id, secret))
        assert_refused(response, "invalid_client", 401)
    for sent, read in (("a+b", "a b"), ("a%2Bb", "a+b"), ("a%3Ab", "a:b"), ("a%25b", "a%b")):
        assert_refused(attacked.server.post_token(basic=(sent, "gths_wrong")), "invalid_client", 401)
        assert attacked.server.audit(client=read)[-1]["reason"] == "unknown client"


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post"])
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda secret: "", id="empty"),
        pytest.param(lambda secret: secret[:-1], id="shorter"),
        pytest.param(lambda secret: secret + "a", id="longer"),
        pytest.param(lambda secret: secret + "a" * 73, id="over 72 bytes (hydra#1438)"),
        pytest.param(lambda secret: secret.upper(), id="case"),
        pytest.param(lambda secret: secret + " ", id="space"),
        pytest.param(lambda secret: secret + ":a", id="colon"),
        pytest.param(lambda secret: secret.replace("g", "\uff47", 1), id="full-width letter (NFKC)"),
        pytest.param(lambda secret: secret + "\u0301", id="combining mark"),
        pytest.param(lambda secret: quote(quote(secret, safe=""), safe="").replace("_", "%255F"), id="encoded twice"),
        pytest.param(lambda secret: "' OR '1'='1", id="SQL"),
    ],
)
def test_a_nearly_correct_secret_is_refused(attacked: Attacked, method: str, spoil: Callable[[str], str]) -> None:
    """CWE-303; hydra#1438 truncated secrets to 72 bytes."""
    client, secret = attacked.server.create_client(auth_method=method)

    def authenticate(secret: str) -> TestResponse:
        if method == "client_secret_basic":
            return attacked.server.post_token(basic=(client.client_id, quote(secret, safe="")))
        return attacked.server.post_token(token_form(client_id=client.client_id, client_secret=secret))

    attacked.accepted(authenticate(secret))
    assert_refused(authenticate(spoil(secret)), "invalid_client", 401)


def post_as(server: AuthServer, client_id: str, method: str) -> TestResponse:
    """Send a token request with a client_id, by one authentication method, with a well-formed credential."""
    if method == "client_secret_basic":
        return server.post_token(basic=(quote(client_id, safe=""), "gths_wrong"))
    if method == "client_secret_post":
        return server.post_token(token_form(client_id=client_id, client_secret="gths_wrong"))
    key = SigningKey.generate("ES256")
    assertion = key.sign("JWT", {"iss": client_id, "sub": client_id})
    return server.post_token(token_form(client_assertion_type=ASSERTION_TYPE, client_assertion=assertion))


@pytest.mark.threat("T-070")
@pytest.mark.both_databases
@pytest.mark.parametrize(
    ("method", "unstorable"),
    # Percent-encoding cannot represent a lone surrogate.
    [*((method, text) for method in AUTH_METHODS for text in ("\x00", "agent\x00a")), ("private_key_jwt", "a\ud800")],
    ids=ascii,
)
def test_text_that_the_database_cannot_store_never_reaches_it(attacked: Attacked, method: str, unstorable: str) -> None:
    """CWE-158: PostgreSQL refuses NUL in text, so a lookup with one would look like a database outage."""
    attacked.accepted()
    parameters: list[str] = []

    def note(_: Any, __: Any, ___: str, values: Any, *____: Any) -> None:
        parameters.append(ascii(values))

    event.listen(attacked.server.services.database.engine, "before_cursor_execute", note)
    assert_refused(post_as(attacked.server, "agent a", method), "invalid_client", 401)
    assert any("agent a" in values for values in parameters)
    response = post_as(attacked.server, unstorable, method)
    event.remove(attacked.server.services.database.engine, "before_cursor_execute", note)
    # A NUL anywhere in the body makes the whole form invalid.
    assert_refused(response, *(("invalid_request", 400) if method == "client_secret_post" else ("invalid_client", 401)))
    assert not [values for values in parameters if ascii(unstorable).strip("'") in values]
    [row] = attacked.server.audit(request_id=response.json["request_id"])
    assert row["reason"].endswith(("NUL character", "NUL character.", "not valid UTF-8."))
    assert "remediation" in row["detail"] or method == "client_secret_post"


@pytest.mark.threat("T-076")
@pytest.mark.parametrize(
    "scope",
    [
        pytest.param("env:write", id="not granted"),
        pytest.param("*", id="wildcard"),
        pytest.param("env:*", id="trailing wildcard"),
        pytest.param("ENV:READ", id="case"),
        pytest.param("env:read\u200b", id="zero-width space"),
        pytest.param("\u0435nv:read", id="Cyrillic letter"),
        pytest.param("env\uff1aread", id="full-width colon (NFKC)"),
        pytest.param("env:read\tenv:write", id="tab"),
        pytest.param("env:read\nenv:write", id="newline"),
        pytest.param("env:read\u00a0env:write", id="no-break space"),
        pytest.param("env:read,org:read", id="comma"),
        pytest.param("env%3Aread", id="encoded twice"),
        pytest.param("env:rea", id="shorter"),
        pytest.param("env:read:more", id="longer"),
        pytest.param("a" * 10_000, id="10 kB"),
        pytest.param("' OR 1=1 --", id="SQL"),
    ],
)
def test_a_lookalike_of_a_granted_scope_is_refused(attacked: Attacked, scope: str) -> None:
    """RFC 6749 3.3: scope tokens are case-sensitive ASCII, delimited by spaces (oidc-provider 9.11.4)."""
    send = attacked.server.post_token
    assert (
        attacked.accepted(send(token_form(scope="env:read org:read"), attacked.basic))["scope"] == "env:read org:read"
    )
    assert_refused(send(token_form(scope=scope), attacked.basic), "invalid_scope")


@pytest.mark.threat("T-076")
def test_a_scope_with_thousands_of_tokens_is_narrowed_to_the_grant(attacked: Attacked) -> None:
    many = " ".join(["env:write", "env:read", *(f"s{number}" for number in range(5_000))])
    response = attacked.server.post_token(token_form(scope=many), attacked.basic)
    assert attacked.accepted(response)["scope"] == "env:read"


@pytest.mark.threat("T-078")
@pytest.mark.parametrize("parameter", ["audience", "aud", "sub", "iss", "exp", "expires_in", "ttl", "claims", "act"])
def test_no_request_parameter_becomes_a_claim(attacked: Attacked, parameter: str) -> None:
    """Authlib by default uses the client as the audience and ignores `resource` (RFC 8707)."""
    varying = {"jti", "status"}
    expected = {name: value for name, value in attacked.accepted().items() if name not in varying}
    response = attacked.server.post_token(token_form(**{parameter: "99999999999"}), attacked.basic)
    claims = attacked.accepted(response)
    assert {name: value for name, value in claims.items() if name not in varying} == expected
    assert (claims["aud"], claims["exp"] - claims["iat"]) == (RESOURCE, 300)


def change_row(attacked: Attacked, **columns: Any) -> None:
    """Change the client's row as an attacker with database access can, without the checks of the commands."""
    with attacked.server.services.database.engine.begin() as connection:
        row = ClientRow.client_id == attacked.client.client_id
        connection.execute(update(ClientRow).values(**columns).where(row))


@pytest.mark.divergence("D-55")
@pytest.mark.threat("T-078")
def test_forged_static_claims_never_replace_standard_claims(attacked: Attacked) -> None:
    """Authlib merges extra claims last (cf. keycloak CVE-2026-16102); here the standard ones win."""
    honest, secret = attacked.server.create_client(claims={"workspace_id": "wks_1"})
    response = attacked.server.post_token(basic=(honest.client_id, secret))
    assert attacked.accepted(response)["workspace_id"] == "wks_1"
    forged = {
        "iss": "https://evil.example",
        "sub": "agent_admin",
        "client_id": "agent_admin",
        "aud": "https://evil.example",
        "scope": "env:write",
        "exp": "99999999999",
        "iat": "0",
        "jti": "fixed",
        "workspace_id": "wks_1",
    }
    change_row(attacked, claims={**forged, "status": "forged"})
    claims = attacked.accepted()
    assert claims.pop("workspace_id") == "wks_1"
    assert claims.pop("status") != "forged"
    assert claims.keys() == forged.keys() - {"workspace_id"}
    assert not [name for name, value in claims.items() if value == forged[name]]


@pytest.mark.divergence("D-36")
def test_a_lifetime_forged_in_the_database_is_capped(attacked: Attacked) -> None:
    """Authlib's default for this grant is ten days."""
    honest, secret = attacked.server.create_client(token_ttl=MAX_LIFETIME - 1)
    change_row(attacked, token_ttl=864_000)
    for basic, life in (((honest.client_id, secret), MAX_LIFETIME - 1), (attacked.basic, MAX_LIFETIME)):
        response = attacked.server.post_token(basic=basic)
        claims = attacked.accepted(response)
        assert response.json["expires_in"] == claims["exp"] - claims["iat"] == life


@pytest.mark.threat("T-079")
@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example"},
        {"X-Forwarded-Host": "evil.example", "X-Forwarded-Proto": "http", "X-Forwarded-Port": "81"},
        {"X-Forwarded-Prefix": "/evil", "X-Script-Name": "/evil"},
        {"Forwarded": "host=evil.example;proto=http"},
        {"X-Original-URL": "/evil", "X-Rewrite-URL": "/evil", "X-Host": "evil.example"},
        {"Host": "evil.example:99999"},
        {"Host": "evil<script>"},
    ],
    ids=["Host", "X-Forwarded", "prefix", "Forwarded", "original URL", "port", "markup"],
)
def test_no_header_changes_the_issuer_or_a_published_url(attacked: Attacked, headers: dict[str, str]) -> None:
    """CWE-644, host header poisoning: identifiers come only from the settings."""
    for path in ("/.well-known/oauth-authorization-server", "/.well-known/jwks.json"):
        expected, poisoned = attacked.server.http.get(path), attacked.server.http.get(path, headers=headers)
        assert (poisoned.status_code, poisoned.data) == (200, expected.data)
        assert "evil" not in str(poisoned.headers)
    claims = attacked.accepted(attacked.server.post_token(basic=attacked.basic, headers=headers))
    assert (claims["iss"], claims["aud"]) == (ISSUER, RESOURCE)


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "PUT", "PATCH", "DELETE", "TRACE"])
@pytest.mark.parametrize("override", [{}, {"X-HTTP-Method-Override": "POST", "X-Method-Override": "POST"}])
def test_only_post_is_accepted(attacked: Attacked, method: str, override: dict[str, str]) -> None:
    """RFC 6749 3.2: the client must use POST. A CORS preflight is refused, so no web page can send the request."""
    attacked.accepted()
    headers = {"Authorization": basic_header(*attacked.basic), "Origin": "https://evil.example", **override}
    response = attacked.server.http.open("/token", method=method, data=BODY, content_type=FORM, headers=headers)
    assert response.status_code == 405
    assert response.headers["Allow"] == "POST"
    assert "access_token" not in response.text
    assert not [name for name, _ in response.headers if name.lower().startswith("access-control-")]


def test_the_method_cannot_be_overridden(attacked: Attacked) -> None:
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        attacked.accepted(attacked.server.post_token(basic=attacked.basic, headers={name: "GET"}))


def test_a_second_authorization_header_is_refused(attacked: Attacked) -> None:
    """CWE-436: a proxy may check one header and the server the other. Two are one list (RFC 9110 5.3)."""
    first, second = basic_header(*attacked.basic), basic_header("agent_other", "gths_other")
    attacked.accepted(attacked.post_header(first))
    for pair in ((first, second), (second, first), (first, first)):
        response = attacked.server.http.post(
            "/token", data=BODY, content_type=FORM, headers=[("Authorization", header) for header in pair]
        )
        assert_refused(response, "invalid_client", 401)


class Unmasked(logging.Handler):
    """A handler that keeps every record unmasked."""

    def __init__(self, records: list[str]) -> None:
        super().__init__()
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        self._records.append(repr(record.__dict__))


class Logs:
    """The log: the written text, and every record before masking."""

    def __init__(self) -> None:
        self._stream = io.StringIO()
        self.records: list[str] = []

    def configure(self, format_: LogFormat) -> None:
        with contextlib.redirect_stderr(self._stream):
            configure_logs(format_, "DEBUG")
        logging.getLogger().addHandler(Unmasked(self.records))

    @property
    def written(self) -> str:
        return self._stream.getvalue()


@pytest.fixture(params=["json", "console"])
def logs(request: pytest.FixtureRequest) -> Iterator[Logs]:
    """Log as a server does, at DEBUG."""
    with logging_put_back():
        logs = Logs()
        logs.configure(request.param)
        yield logs


@pytest.mark.divergence("D-54")
@pytest.mark.threat("T-106")
def test_neither_log_nor_audit_log_contains_a_secret_or_a_token(attacked: Attacked, logs: Logs) -> None:
    """CWE-532: Authlib logs whole access tokens at DEBUG. The test also checks the records before masking."""
    server = attacked.server
    broken, broken_secret = server.create_client()
    with server.services.database.engine.begin() as connection:
        row = ClientRow.client_id == broken.client_id
        connection.execute(update(ClientRow).values(claims="no claims").where(row))
    tokens = [server.post_token(basic=attacked.basic).json["access_token"] for _ in range(2)]
    secrets = [attacked.secret, broken_secret, "gths_guess", "marker-secret", "bWFya2VyLWFzc2VydGlvbg"]
    server.post_token(basic=(attacked.client.client_id, "gths_guess"))
    server.post_token(token_form(client_id="a", client_secret="marker-secret"))
    server.post_token(token_form(client_id="a", client_assertion=f"eyJh.{secrets[-1]}.c2ln"))
    server.post_token(token_form(), headers={"Authorization": f"Bearer {tokens[0]}"})
    server.post_token(token_form(), query=f"client_secret={attacked.secret}")
    server.post_token(token_form(), basic=(broken.client_id, broken_secret))
    server.http.get(f"/token/{attacked.secret}?access_token={tokens[0]}")
    server.http.get("/livez", headers={"Authorization": f"Bearer {tokens[0]}", "X-Request-Id": attacked.secret})
    trail = json.dumps(server.audit(limit=1000))
    written, raw = logs.written, "\n".join(logs.records)
    assert attacked.client.client_id in written
    assert attacked.client.client_id in raw
    assert attacked.client.client_id in trail
    signatures = [token.rsplit(".", 1)[1] for token in tokens]
    headers = [encoded(f"{attacked.client.client_id}:{attacked.secret}")]
    for secret in (*secrets, *tokens, *signatures, *headers):
        assert secret not in written
        assert secret not in raw
        assert secret not in trail


@pytest.mark.threat("T-106")
def test_a_secret_sent_as_the_client_id_is_not_stored(attacked: Attacked, logs: Logs) -> None:
    """CWE-532: the two are easily confused, and the audit log records the claimed client_id."""
    token = attacked.server.post_token(basic=attacked.basic).json["access_token"]
    for secret in (attacked.secret, token):
        form = token_form(client_id=secret, client_secret=attacked.client.client_id)
        refused = attacked.server.post_token(form)
        assert_refused(refused, "invalid_client", 401)
        [row] = attacked.server.audit(request_id=refused.json["request_id"])
        assert row["reason"] in {"unknown client", "credentials longer than 512 characters"}
        assert secret[:40] not in json.dumps(row)
        assert secret[:40] not in logs.written


@pytest.mark.divergence("D-54")
@pytest.mark.threat("T-106")
def test_authlib_never_logs_at_debug(logs: Logs) -> None:
    """authlib/oauth2/rfc6749/grants/client_credentials.py: `log.debug("Issue token %r to %r", token, client)`."""
    logging.getLogger("gatehouse.control").debug("marker-control")
    logging.getLogger("authlib.oauth2.rfc6749.grants.client_credentials").debug("Issue token %r", "marker-token")
    assert "marker-control" in logs.written
    assert "marker-token" not in logs.written


INJECTIONS = {
    "CRLF": "agent\r\n2026-01-01T00:00:00Z [info] forged",
    "ANSI": "agent\x1b[2J\x1b]0;owned\x07",
    "bare ANSI": "\x1b[31m",
    "C1 control": "agent\x9b31m",
    "backspace": "agent\b\b\b\b\b",
    "line separator": "agent\u2028forged\x85forged\x0bforged",
    "right-to-left": "agent\u202eforged",
}


@pytest.mark.threat("T-114")
@pytest.mark.parametrize("client_id", INJECTIONS.values(), ids=INJECTIONS.keys())
@pytest.mark.parametrize("way", ["Basic", "post"])
def test_a_client_id_cannot_forge_a_line_of_a_log_or_report(
    attacked: Attacked, logs: Logs, client_id: str, way: str
) -> None:
    """CWE-117, and CWE-150 for the terminal that displays the log."""
    server = attacked.server
    if way == "Basic":
        response = server.post_token(basic=(quote(client_id), "gths_wrong"))
    else:
        response = server.post_token(token_form(client_id=client_id, client_secret="gths_wrong"))
    assert_refused(response, "invalid_client", 401)
    forged = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e]")
    assert forged.search(response.text + "".join(value for _, value in response.headers)) is None
    [actor] = [row["actor"] for row in server.audit(request_id=response.json["request_id"])]
    assert actor.isprintable()
    assert "\\x" in actor or "\\u" in actor
    assert response.json["request_id"] in logs.written
    assert forged.search(logs.written) is None
    assert len(logs.written.splitlines()) == 1


@pytest.mark.parametrize("name", ["scope", "resource", "grant_type"])
def test_no_parameter_can_forge_a_line_of_a_log_or_report(attacked: Attacked, logs: Logs, name: str) -> None:
    """CWE-117."""
    for injection in INJECTIONS.values():
        response = attacked.server.post_token({**token_form(), name: f"{injection}-marker"}, attacked.basic)
        assert response.status_code == 400
        assert "marker" not in response.text + str(response.headers)
        [row] = attacked.server.audit(request_id=response.json["request_id"])
        assert "marker" not in json.dumps(row)
    assert "/token" in logs.written
    assert "marker" not in logs.written


def test_request_headers_reach_neither_log_nor_audit_log(attacked: Attacked, logs: Logs) -> None:
    """CWE-117: the client controls these headers."""
    headers = {"User-Agent": "marker\x1b[2J", "X-Forwarded-For": "marker", "Referer": "https://marker.example"}
    attacked.accepted(attacked.server.post_token(basic=attacked.basic, headers=headers))
    assert "/token" in logs.written
    assert "token.issue" in {row["action"] for row in attacked.server.audit()}
    assert "marker" not in logs.written + json.dumps(attacked.server.audit())


def test_input_is_truncated_before_it_is_logged(attacked: Attacked, logs: Logs) -> None:
    """CWE-779: a form may have 64 KiB, but a log line or an audit row must stay short."""
    form = token_form(client_id="a" * 60_000, client_secret="gths_wrong")
    response = attacked.server.post_token(form)
    assert_refused(response, "invalid_client", 401)
    [row] = attacked.server.audit(request_id=response.json["request_id"])
    assert len(row["actor"]) <= 255
    many = " ".join(f"scope{number}" for number in range(5_000))
    refused = attacked.server.post_token(token_form(scope=many), attacked.basic)
    [row] = attacked.server.audit(request_id=refused.json["request_id"])
    assert len(row["reason"]) < 1024
    assert max(len(line) for line in logs.written.splitlines()) < 4096


@pytest.mark.threat("T-077")
def test_naming_another_resource_does_not_change_the_audience(attacked: Attacked) -> None:
    """RFC 8707 3: the audience is the granted resource, whatever the request names."""
    attacked.server.add_resource(OTHER_RESOURCE)
    assert attacked.accepted(attacked.post(BODY + b"&resource=" + RESOURCE.encode()))["aud"] == RESOURCE
    for wanted in (OTHER_RESOURCE, f"{RESOURCE}#@{OTHER_RESOURCE}", f"{RESOURCE} {OTHER_RESOURCE}", "*"):
        assert_refused(attacked.post(BODY + b"&resource=" + quote(wanted).encode()), "invalid_target")
