"""Attacks on client credentials: malformed, ambiguous or nearly correct. Each test first sends the genuine ones."""

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from sqlalchemy import event, update
from support.assertions import ASSERTION_TYPE
from support.attacked import BODY, Attacked, assert_refused, encoded
from support.authserver import FORM, AuthServer, basic_header, token_form
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registry import AUTH_METHODS
from gatehouse.authserver.credentials.secrets import digest
from gatehouse.authserver.db.models import ClientSecretRow
from gatehouse.shared.protocol.jws import SigningKey


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
    assert row["reason"].endswith(("NUL character", "NUL character.", "not valid JSON."))
    assert "remediation" in row["detail"] or method == "client_secret_post"


def test_a_second_authorization_header_is_refused(attacked: Attacked) -> None:
    """CWE-436: a proxy may check one header and the server the other. Two are one list (RFC 9110 5.3)."""
    first, second = basic_header(*attacked.basic), basic_header("agent_other", "gths_other")
    attacked.accepted(attacked.post_header(first))
    for pair in ((first, second), (second, first), (first, first)):
        response = attacked.server.http.post(
            "/token", data=BODY, content_type=FORM, headers=[("Authorization", header) for header in pair]
        )
        assert_refused(response, "invalid_client", 401)
