"""The request id of every refusal leads an operator to the private reason and the remediation."""

import io
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from support.assertions import ASSERTION_TYPE, KeyClient
from support.authserver import FORM, AuthServer, basic_header, token_form
from support.logs import logging_put_back
from werkzeug.test import TestResponse

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.logs import configure_logs

Ask = Callable[[AuthServer], TestResponse]


def only_event(server: AuthServer, response: TestResponse) -> dict[str, Any]:
    assert response.json["request_id"] == response.headers["X-Request-Id"]
    [event] = server.audit(request_id=response.json["request_id"])
    return event


def cut_off(server: AuthServer) -> TestResponse:
    environ = {"CONTENT_LENGTH": "99", "CONTENT_TYPE": FORM, "wsgi.input": io.BytesIO(b"grant_type=")}
    return server.http.open("/token", method="POST", environ_overrides=environ)


@pytest.mark.threat("T-115")
@pytest.mark.parametrize(
    ("ask", "status", "target", "reason"),
    [
        pytest.param(lambda s: s.http.get("/nope"), 404, "(other)", "No such endpoint", id="404"),
        pytest.param(lambda s: s.http.get("/token"), 405, "/token", "No such endpoint or method", id="405"),
        pytest.param(lambda s: s.http.get("/authorize"), 400, "/authorize", "client_credentials", id="authorize"),
        pytest.param(cut_off, 400, "/token", "ended before its Content-Length", id="cut off"),
        pytest.param(
            lambda s: s.http.post("/token", data=b"a" * 65537, content_type=FORM), 413, "/token", "64 KiB", id="413"
        ),
    ],
)
def test_every_http_refusal_is_found_by_its_request_id(
    authserver: AuthServer, ask: Ask, status: int, target: str, reason: str
) -> None:
    client, secret = authserver.create_client()
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200
    response = ask(authserver)
    assert response.status_code == status
    event = only_event(authserver, response)
    assert (event["action"], event["outcome"], event["object"]) == ("http.request", "refused", target)
    assert reason in event["reason"]


def test_an_unknown_path_is_not_recorded(authserver: AuthServer) -> None:
    """A path may contain a credential that was pasted into it."""
    response = authserver.http.get("/gths_pasted-by-mistake")
    assert "pasted" not in json.dumps(only_event(authserver, response), default=str)


def test_an_unexpected_failure_is_found_by_its_request_id(authserver: AuthServer) -> None:
    class Broken(io.RawIOBase):
        def read(self, size: int = -1) -> Any:
            raise OSError("the disk broke at /srv/secret")

    environ = {"CONTENT_LENGTH": "9", "wsgi.input": Broken()}
    response = authserver.http.post("/token", content_type=FORM, environ_overrides=environ)
    assert response.status_code == 500
    event = only_event(authserver, response)
    assert (event["outcome"], event["detail"]["error"]) == ("failed", "server_error")
    assert "secret" not in json.dumps(event, default=str)


@pytest.mark.parametrize(
    "ask", [lambda s: s.http.get("/nope"), lambda s: s.http.get("/authorize"), cut_off], ids=["404", "authorize", "cut"]
)
def test_no_endpoint_sends_an_unrecorded_refusal(authserver: AuthServer, ask: Ask) -> None:
    assert ask(authserver).status_code in {400, 404}
    authserver.take_database_away()
    response = ask(authserver)
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert int(response.headers["Retry-After"]) > 0


def by_assertion(change: Callable[[KeyClient], str]) -> Ask:
    def ask(server: AuthServer) -> TestResponse:
        client = KeyClient(server, SigningKey.generate("ES256"))
        client.accepted()
        return client.post(change(client))

    return ask


def used_twice(server: AuthServer) -> TestResponse:
    client = KeyClient(server, SigningKey.generate("ES256"))
    assertion = client.assertion()
    assert client.post(assertion).status_code == 200
    return client.post(assertion)


def with_secret(*, method: str = "client_secret_basic", **parameters: str) -> Ask:
    def ask(server: AuthServer) -> TestResponse:
        client, secret = server.create_client(auth_method=method)
        return server.post_token(token_form(**parameters), (client.client_id, secret))

    return ask


def wrong_secret(server: AuthServer) -> TestResponse:
    client, secret = server.create_client()
    assert server.post_token(basic=(client.client_id, secret)).status_code == 200
    return server.post_token(basic=(client.client_id, secret + "x"))


def with_authorization(authorization: str) -> Ask:
    return lambda server: server.post_token(headers={"Authorization": authorization})


@pytest.mark.parametrize(
    ("ask", "remediation"),
    [
        pytest.param(lambda s: s.post_token(), "authserver client show", id="no credential"),
        pytest.param(lambda s: s.post_token(basic=("agent_nobody", "x")), "authserver client list", id="unknown"),
        pytest.param(wrong_secret, "secret in use with: authserver client secret list agent_", id="wrong secret"),
        pytest.param(with_secret(method="client_secret_post"), "authserver client show agent_", id="other method"),
        pytest.param(with_secret(client_id="agent_other"), "Leave client_id out", id="two client_ids"),
        pytest.param(with_authorization("Bearer x"), "authserver client show", id="scheme"),
        pytest.param(with_authorization("Basic !"), "base64", id="not base64"),
        pytest.param(with_authorization("Basic YQ=="), "base64", id="no colon"),
        pytest.param(with_authorization(basic_header("a" * 600, "b")), "authserver client show", id="long"),
        pytest.param(with_secret(scope="org:read"), "authserver client grant add agent_", id="scope"),
        pytest.param(by_assertion(lambda c: c.assertion(typ="at+jwt")), "Set typ to JWT", id="typ"),
        pytest.param(by_assertion(lambda c: c.assertion(kid="no")), "authserver client show agent_", id="kid"),
        pytest.param(
            by_assertion(lambda c: c.assertion(key=SigningKey.generate("ES256"))), "client show agent_", id="signature"
        ),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(iss="x"))), "Set iss and sub to agent_", id="iss"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(sub=None))), "Set iss and sub", id="sub"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(aud="x"))), "Set aud to https://as.", id="aud"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(exp=None))), "Set exp, at most 300", id="no exp"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(exp="1.5"))), "Set exp to seconds since", id="exp"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(exp=1))), "clock", id="expired"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(exp=2**37))), "Set exp at most 300", id="far exp"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(nbf=2**37))), "clock", id="nbf"),
        pytest.param(by_assertion(lambda c: c.assertion(c.claims(jti=None))), "a new jti", id="jti"),
        pytest.param(by_assertion(lambda c: "a.b.c"), "a compact JWT", id="not a JWT"),
        pytest.param(used_twice, "a new jti", id="used before"),
        pytest.param(
            lambda s: s.post_token(token_form(client_assertion_type="x", client_assertion="y")),
            ASSERTION_TYPE,
            id="type",
        ),
    ],
)
def test_a_refusal_names_the_remediation_to_the_operator_only(
    authserver: AuthServer, ask: Ask, remediation: str
) -> None:
    response = ask(authserver)
    assert response.status_code in {400, 401}
    assert remediation in only_event(authserver, response)["detail"]["remediation"]
    assert remediation not in response.text


def test_no_suggested_command_revokes_a_valid_secret(authserver: AuthServer) -> None:
    """Anyone can cause this refusal for any client."""
    remediation = only_event(authserver, wrong_secret(authserver))["detail"]["remediation"]
    assert re.search("secret rotate agent_", remediation) is None
    assert "Only if the secret is lost: authserver client secret rotate, which revokes" in remediation


def test_each_request_is_logged_with_id_client_outcome_and_duration(
    authserver: AuthServer, capfd: pytest.CaptureFixture[str]
) -> None:
    client, secret = authserver.create_client()
    with logging_put_back():
        configure_logs("json")
        responses = [
            authserver.post_token(basic=(client.client_id, secret)),
            authserver.post_token(token_form(scope="org:read"), (client.client_id, secret)),
            authserver.http.get("/nope"),
        ]
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    assert [line["request_id"] for line in lines] == [response.headers["X-Request-Id"] for response in responses]
    assert [line["outcome"] for line in lines] == ["allowed", "refused", "refused"]
    assert [line.get("client_id") for line in lines] == [client.client_id, client.client_id, None]
    assert all(line["ms"] >= 0 for line in lines)
