"""Attacks on the token endpoint. Each test first sends the same request without the attack."""

from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import update
from support.attacked import BODY, Attacked, assert_refused
from support.authserver import FORM, ISSUER, OTHER_RESOURCE, RESOURCE, basic_header, token_form
from werkzeug.test import TestResponse

from gatehouse.authserver.db.models import ClientRow
from gatehouse.shared.protocol.claims import MAX_LIFETIME


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


@pytest.mark.threat("T-077")
def test_naming_another_resource_does_not_change_the_audience(attacked: Attacked) -> None:
    """RFC 8707 3: the audience is the granted resource, whatever the request names."""
    attacked.server.add_resource(OTHER_RESOURCE)
    assert attacked.accepted(attacked.post(BODY + b"&resource=" + RESOURCE.encode()))["aud"] == RESOURCE
    for wanted in (OTHER_RESOURCE, f"{RESOURCE}#@{OTHER_RESOURCE}", f"{RESOURCE} {OTHER_RESOURCE}", "*"):
        assert_refused(attacked.post(BODY + b"&resource=" + quote(wanted).encode()), "invalid_target")
