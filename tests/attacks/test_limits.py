"""Attacks on limits: lock a client out, get past a limit, learn which clients exist, slow others down."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.assertions import ASSERTION_TYPE, KeyClient
from support.authserver import AuthServer, basic_header, token_form
from support.clock import FakeClock
from support.databases import Template
from support.refused_clients import count_digests_and_comparisons
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.shared.protocol.jws import SigningKey

WRONG = "gths_wrong"
DEFAULTS = {
    "workers": 1,
    "limit_authentication_failures": "10/minute",
    "limit_token_requests": "60/minute",
    "limit_revocations": "60/minute",
}


@pytest.fixture
def limited(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    server = AuthServer(tmp_path / "authserver", authserver_template, clock, **DEFAULTS)
    with closing(server):
        yield server


def post(server: AuthServer, client_id: str, secret: str, peer: str, forwarded: str | None = None) -> TestResponse:
    headers = {"Authorization": basic_header(client_id, secret)}
    if forwarded is not None:
        headers["X-Forwarded-For"] = forwarded
    return server.http.post("/token", data=token_form(), headers=headers, environ_overrides={"REMOTE_ADDR": peer})


@pytest.mark.threat("T-151")
def test_a_flood_of_wrong_secrets_does_not_lock_the_client_out(limited: AuthServer) -> None:
    """Account lockout as denial of service (CWE-645): the flood comes from the client's own address."""
    client, secret = limited.create_client()
    assert post(limited, client.client_id, secret, "192.0.2.1").status_code == 200
    for _ in range(200):
        assert post(limited, client.client_id, WRONG, "192.0.2.1").status_code in {401, 429}
    assert post(limited, client.client_id, WRONG, "192.0.2.1").status_code == 429
    for _ in range(59):
        assert post(limited, client.client_id, secret, "192.0.2.1").status_code == 200


@pytest.mark.threat("T-152")
def test_a_client_cannot_choose_its_source_address(limited: AuthServer) -> None:
    """CWE-348: the header of the attacker's choice does not give it a new count."""
    client, _ = limited.create_client()
    answers = [
        post(limited, client.client_id, WRONG, "192.0.2.1", f"198.51.100.{number}, 203.0.113.{number}").status_code
        for number in range(20)
    ]
    assert answers == [401] * 10 + [429] * 10


@pytest.mark.threat("T-152")
def test_a_client_behind_a_proxy_cannot_choose_its_source_address(
    tmp_path: Path, authserver_template: Template, clock: FakeClock
) -> None:
    server = AuthServer(tmp_path / "as", authserver_template, clock, **DEFAULTS, trusted_proxies="10.0.0.7")
    with closing(server):
        client, _ = server.create_client()
        answers = [
            post(server, client.client_id, WRONG, "10.0.0.7", f"203.0.113.{number}, 192.0.2.1").status_code
            for number in range(20)
        ]
    assert answers == [401] * 10 + [429] * 10


@pytest.mark.threat("T-152")
def test_another_address_of_an_ipv6_network_has_no_new_count(limited: AuthServer) -> None:
    client, _ = limited.create_client()
    answers = [
        post(limited, client.client_id, WRONG, f"2001:db8:1:2::{number:x}").status_code for number in range(1, 21)
    ]
    assert answers == [401] * 10 + [429] * 10
    assert post(limited, client.client_id, WRONG, "2001:db8:1:3::1").status_code == 401


@pytest.mark.threat("T-061")
def test_a_limit_does_not_reveal_which_clients_exist(limited: AuthServer) -> None:
    """Client enumeration: unknown, known and disabled clients get the same responses after the same work."""
    client, _ = limited.create_client()
    disabled, disabled_secret = limited.create_client()
    with limited.services.database.write() as session:
        set_disabled(session, limited.admin, disabled.client_id, disabled=True)
    seen = set()
    for client_id, secret in (
        ("agent_unknown", WRONG),
        (client.client_id, WRONG),
        (disabled.client_id, disabled_secret),
    ):
        answers = [post(limited, client_id, secret, "192.0.2.1") for _ in range(12)]
        texts = [answer.text.replace(answer.headers["X-Request-Id"], "") for answer in answers]
        headers = [tuple(sorted((n, v) for n, v in answer.headers if n != "X-Request-Id")) for answer in answers]

        def again(client_id: str = client_id, secret: str = secret) -> None:
            post(limited, client_id, secret, "192.0.2.1")

        work = count_digests_and_comparisons(limited, again)
        seen.add((tuple(answer.status_code for answer in answers), tuple(texts), tuple(headers), work))
    [(statuses, *_)] = seen
    assert statuses == (401,) * 10 + (429,) * 2


@pytest.mark.threat("T-151")
def test_a_copy_of_an_assertion_cannot_use_up_the_rate_of_its_client(limited: AuthServer) -> None:
    """CWE-645 by replay: an assertion that was used before does not count as a request of the client."""
    client = KeyClient(limited, SigningKey.generate("ES256"))
    copy = client.assertion()
    assert client.post(copy).status_code == 200
    answers = [client.post(copy).status_code for _ in range(200)]
    assert answers == [401] * 10 + [429] * 190, "as for any failed authentication"
    for _ in range(59):
        client.accepted()
    assert client.post(client.assertion()).status_code == 429


@pytest.mark.threat("T-061")
@pytest.mark.parametrize("path", ["/token", "/revoke"])
def test_wrong_assertions_get_the_same_response_past_the_limit(limited: AuthServer, path: str) -> None:
    """Without the key, nobody learns from a response that a client has exceeded its limit."""
    client = KeyClient(limited, SigningKey.generate("ES256"))

    def send(assertion: str) -> TestResponse:
        proof = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": assertion}
        return limited.http.post(path, data=token_form(**proof, token="unknown"))

    used = client.assertion()
    assert send(used).status_code == 200
    wrong = [
        used,
        client.assertion(key=SigningKey.generate("ES256")),
        client.assertion(client.claims(aud="https://other.example.com")),
        client.assertion(client.claims(exp=int(client.clock()) - 60)),
    ]
    before = [send(assertion) for assertion in wrong]
    assert [response.status_code for response in before] == [401] * 4
    while send(client.assertion()).status_code == 200:
        pass
    assert send(client.assertion()).status_code == 429
    for response, earlier in zip((send(assertion) for assertion in wrong), before, strict=True):
        assert response.status_code == 401
        texts = {each.text.replace(each.headers["X-Request-Id"], "") for each in (response, earlier)}
        assert len(texts) == 1
        assert set(response.headers.keys()) == set(earlier.headers.keys())


@pytest.mark.threat("T-153")
def test_a_flood_of_one_client_does_not_limit_another(limited: AuthServer) -> None:
    flooding, flooding_secret = limited.create_client()
    other, other_secret = limited.create_client()
    for _ in range(100):
        post(limited, flooding.client_id, flooding_secret, "192.0.2.1")
        post(limited, flooding.client_id, WRONG, "192.0.2.1")
    assert post(limited, flooding.client_id, flooding_secret, "192.0.2.1").status_code == 429
    for _ in range(60):
        assert post(limited, other.client_id, other_secret, "192.0.2.1").status_code == 200
