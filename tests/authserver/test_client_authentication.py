"""Client authentication, and the response when it fails (RFC 6749 2.3, 5.2)."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import event
from support.authserver import AuthServer, basic_header, token_form
from support.refused_clients import assert_invalid_client, count_digests_and_comparisons
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.credentials import secrets

BASIC, POST = "client_secret_basic", "client_secret_post"


def by_method(server: AuthServer, method: str, client_id: str, secret: str) -> TestResponse:
    if method == BASIC:
        return server.post_token(basic=(client_id, secret))
    return server.post_token(token_form(client_id=client_id, client_secret=secret))


def disable(server: AuthServer, client_id: str) -> None:
    with server.services.database.write() as session:
        set_disabled(session, server.admin, client_id, disabled=True)


@pytest.mark.divergence("D-52")
@pytest.mark.threat("T-062")
@pytest.mark.parametrize(("registered", "other"), [(BASIC, POST), (POST, BASIC)])
def test_a_client_authenticates_only_by_its_registered_method(
    authserver: AuthServer, registered: str, other: str
) -> None:
    client, secret = authserver.create_client(auth_method=registered)
    assert by_method(authserver, registered, client.client_id, secret).status_code == 200
    assert_invalid_client(by_method(authserver, other, client.client_id, secret))
    assert authserver.audit(client=client.client_id)[-1]["reason"] == f"used {other}, registered for {registered}"


@pytest.mark.parametrize("scheme", ["Basic", "basic", "BASIC"])
def test_the_basic_scheme_is_case_insensitive(authserver: AuthServer, scheme: str) -> None:
    """RFC 9110 11.1."""
    client, secret = authserver.create_client()
    header = basic_header(client.client_id, secret).replace("Basic", scheme)
    assert authserver.post_token(headers={"Authorization": header}).status_code == 200


def test_basic_credentials_are_form_encoded(authserver: AuthServer) -> None:
    """RFC 6749 2.3.1: "%5F" in the credentials is an underscore."""
    client, secret = authserver.create_client()
    encoded = (client.client_id.replace("_", "%5F"), secret.replace("_", "%5f"))
    assert authserver.post_token(basic=encoded).status_code == 200


def test_a_client_id_sent_with_basic_must_match(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    other, _ = authserver.create_client()
    basic = (client.client_id, secret)
    assert authserver.post_token(token_form(client_id=client.client_id), basic).status_code == 200
    assert_invalid_client(authserver.post_token(token_form(client_id=other.client_id), basic))


@pytest.mark.divergence("D-40")
@pytest.mark.threat("T-062")
@pytest.mark.parametrize(
    ("registered", "added"),
    [
        pytest.param(BASIC, {"client_secret": "right"}, id="Basic and post, both right"),
        pytest.param(BASIC, {"client_secret": "wrong"}, id="Basic right, post wrong"),
        pytest.param(BASIC, {"client_assertion": "e30.e30.e30"}, id="Basic and assertion"),
        pytest.param(POST, {"basic": "right"}, id="post and Basic, both right"),
        pytest.param(POST, {"basic": "wrong"}, id="post right, Basic wrong"),
        pytest.param(POST, {"client_assertion": "e30.e30.e30"}, id="post and assertion"),
    ],
)
def test_two_methods_in_one_request_are_refused(authserver: AuthServer, registered: str, added: dict[str, str]) -> None:
    """RFC 6749 2.3: a client must not use more than one method in a request."""
    client, secret = authserver.create_client(auth_method=registered)
    chosen = {"right": secret, "wrong": "gths_wrong"}

    def post(credentials: dict[str, str]) -> TestResponse:
        form = {name: chosen.get(value, value) for name, value in credentials.items()}
        basic = (client.client_id, form.pop("basic")) if "basic" in form else None
        return authserver.post_token(token_form(client_id=client.client_id, **form), basic)

    right = {"basic": "right"} if registered == BASIC else {"client_secret": "right"}
    assert post(right).status_code == 200
    refused = post({**right, **added})
    assert refused.status_code == 400
    assert refused.json["error"] == "invalid_request"
    assert "one method" in refused.json["error_description"]


@pytest.mark.divergence("D-05", "D-45")
@pytest.mark.threat("T-061")
@pytest.mark.parametrize("method", [BASIC, POST])
def test_unknown_wrong_and_disabled_get_the_same_response(authserver: AuthServer, method: str) -> None:
    """Client enumeration by text, status and headers (keycloak#26110)."""
    client, secret = authserver.create_client(auth_method=method)
    disabled, disabled_secret = authserver.create_client(auth_method=method)
    disable(authserver, disabled.client_id)
    assert by_method(authserver, method, client.client_id, secret).status_code == 200
    answers = [
        by_method(authserver, method, client_id, sent)
        for client_id, sent in (
            ("agent_unknown", secret),
            (client.client_id, "gths_wrong"),
            (client.client_id, disabled_secret),
            (disabled.client_id, disabled_secret),
            (disabled.client_id, "gths_wrong"),
        )
    ]
    seen = set()
    for answer in answers:
        assert_invalid_client(answer)
        seen.add((answer.text.replace(answer.headers["X-Request-Id"], ""), *_constant_headers(answer)))
    assert len(seen) == 1


def _constant_headers(answer: TestResponse) -> list[tuple[str, str]]:
    return sorted((name, value) for name, value in answer.headers if name != "X-Request-Id")


@pytest.mark.parametrize(
    ("form", "headers", "reason"),
    [
        pytest.param({}, {}, "no client authentication in the request", id="nothing"),
        pytest.param({"client_id": "agent_a"}, {}, "no client authentication in the request", id="only a client_id"),
        pytest.param({"client_secret": "a"}, {}, "no client authentication in the request", id="only a secret"),
        pytest.param(
            {"client_assertion": "e30.e30.e30"}, {}, "client_assertion_type is not jwt-bearer", id="assertion"
        ),
        pytest.param({}, {"Authorization": "Bearer abc"}, "Authorization scheme is not Basic", id="Bearer"),
        pytest.param({}, {"Authorization": "Basic"}, "Basic credentials have no colon", id="Basic and nothing"),
        pytest.param({}, {"Authorization": ""}, "Authorization scheme is not Basic", id="empty header"),
        pytest.param(
            {}, {"Authorization": basic_header("agent_a", "")}, "Basic credentials are empty", id="empty secret"
        ),
        pytest.param({}, {"Authorization": basic_header("", "a")}, "Basic credentials are empty", id="empty client_id"),
    ],
)
def test_unusable_credentials_get_the_same_response(
    authserver: AuthServer, form: dict[str, str], headers: dict[str, str], reason: str
) -> None:
    client, secret = authserver.create_client()
    assert authserver.post_token(token_form(), basic=(client.client_id, secret)).status_code == 200
    assert_invalid_client(authserver.post_token(token_form(**form), headers=headers))
    event_ = [row for row in authserver.audit() if row["action"] == "token.issue"][-1]
    assert event_["outcome"] == "refused"
    assert event_["reason"].startswith(reason)


def test_authentication_precedes_every_other_check(authserver: AuthServer) -> None:
    """An unauthenticated request reveals nothing about grants, resources or scopes."""
    client, secret = authserver.create_client()
    form = {"grant_type": "password", "scope": '"', "resource": "nonsense"}
    assert authserver.post_token(form, (client.client_id, secret)).json["error"] == "unsupported_grant_type"
    assert_invalid_client(authserver.post_token(form, (client.client_id, "gths_wrong")))


@pytest.mark.both_databases
def test_an_enabled_client_gets_tokens_again(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    disable(authserver, client.client_id)
    with authserver.services.database.write() as session:
        set_disabled(session, authserver.admin, client.client_id, disabled=False)
    assert authserver.post_token(basic=(client.client_id, secret)).status_code == 200


def test_one_clients_secret_does_not_authenticate_another(authserver: AuthServer) -> None:
    first, first_secret = authserver.create_client()
    second, second_secret = authserver.create_client()
    assert authserver.post_token(basic=(first.client_id, first_secret)).status_code == 200
    assert authserver.post_token(basic=(second.client_id, second_secret)).status_code == 200
    assert_invalid_client(authserver.post_token(basic=(first.client_id, second_secret)))
    assert_invalid_client(authserver.post_token(basic=(second.client_id, first_secret)))


def count_statements(server: AuthServer, action: Callable[[], Any]) -> int:
    statements: list[str] = []

    def note(_: Any, __: Any, statement: str, *___: Any) -> None:
        # The key ring is loaded again once a second, for any client.
        if not statement.startswith("BEGIN") and "FROM signing_key" not in statement and "FROM pepper" not in statement:
            statements.append(statement)

    event.listen(server.services.database.engine, "before_cursor_execute", note)
    try:
        action()
    finally:
        event.remove(server.services.database.engine, "before_cursor_execute", note)
    return len(statements)


@pytest.mark.divergence("D-45")
@pytest.mark.threat("T-061")
@pytest.mark.both_databases
@pytest.mark.parametrize("method", [BASIC, POST])
def test_every_failed_authentication_does_the_same_work(authserver: AuthServer, method: str) -> None:
    """Client enumeration by timing (keycloak#26110): the amount of work does not reveal whether a client exists."""
    clients = {
        "wrong secret": authserver.create_client(auth_method=method)[0].client_id,
        "other method": authserver.create_client(auth_method=POST if method == BASIC else BASIC)[0].client_id,
        "disabled": authserver.create_client(auth_method=method)[0].client_id,
        "unknown": "agent_unknown",
    }
    disable(authserver, clients["disabled"])
    control, secret = authserver.create_client(auth_method=method)
    assert by_method(authserver, method, control.client_id, secret).status_code == 200
    # The first refusal also writes the pending event of the token.
    assert_invalid_client(by_method(authserver, method, control.client_id, "gths_wrong"))
    costs = {}
    for name, client_id in clients.items():

        def attempt(client_id: str = client_id) -> None:
            assert_invalid_client(by_method(authserver, method, client_id, "gths_wrong"))

        def cost(attempt: Callable[[], None] = attempt) -> tuple[int, int]:
            return count_digests_and_comparisons(authserver, attempt)

        digests: list[tuple[int, int]] = []
        statements = count_statements(authserver, lambda cost=cost, digests=digests: digests.append(cost()))
        costs[name] = (statements, *digests[0])
    assert len(set(costs.values())) == 1, costs
    assert costs["unknown"][1:] == (1, secrets.EXAMINED)
    assert costs["unknown"][0] > 0


def test_a_stored_secret_matches_only_under_the_pepper_that_made_it() -> None:
    secret, pepper = secrets.generate_secret(), b"p" * 32
    stored = [secrets.StoredSecret("pep_1", secrets.digest(pepper, secret))]
    assert secrets.find_secret(secret, stored, {"pep_1": pepper}) is stored[0]
    assert secrets.find_secret(secret, stored, {"pep_1": b"q" * 32}) is None
    assert secrets.find_secret(secret, stored, {"pep_2": pepper}) is None
    assert secrets.find_secret(secret, [], {"pep_1": pepper}) is None


def test_one_digest_is_computed_for_each_pepper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets of one client can be under several peppers; their number must not change the work."""
    peppers = {"pep_1": b"p" * 32, "pep_2": b"q" * 32}
    values = [secrets.generate_secret() for _ in range(secrets.EXAMINED)]
    stored = [
        secrets.StoredSecret(pepper_id, secrets.digest(peppers[pepper_id], value))
        for pepper_id, value in zip(["pep_1", "pep_2", "pep_1", "pep_2"], values, strict=True)
    ]
    computed: list[bytes] = []

    def note(pepper: bytes, secret: str, digest: Callable[[bytes, str], bytes] = secrets.digest) -> bytes:
        computed.append(pepper)
        return digest(pepper, secret)

    monkeypatch.setattr(secrets, "digest", note)
    for number in range(secrets.EXAMINED + 1):
        for value in (*values[:number], "gths_wrong"):
            computed.clear()
            found = secrets.find_secret(value, stored[:number], peppers)
            assert found is (None if value == "gths_wrong" else stored[values.index(value)])
            assert computed == list(peppers.values())


@pytest.mark.threat("T-081")
def test_a_digest_of_zeros_matches_no_secret() -> None:
    """The padding for absent secrets must not match any secret."""
    stored = [secrets.StoredSecret("gone", bytes(32))]
    assert secrets.find_secret("gths_any", stored, {"pep_1": b"p" * 32}) is None
    assert secrets.find_secret("", stored, {}) is None


def test_a_secret_has_a_recognisable_prefix_and_256_random_bits() -> None:
    made = {secrets.generate_secret() for _ in range(50)}
    assert len(made) == 50
    assert all(secret.startswith("gths_") and len(secret) == len("gths_") + 43 for secret in made)
