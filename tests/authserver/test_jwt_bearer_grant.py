"""The JWT bearer grant with a platform token (RFC 7523 2.1; MCP's workload identity extension, SEP-1933)."""

import pytest
from support.assertions import KeyClient, jwks, public_jwk
from support.authserver import AuthServer, basic_header, token_form
from support.key_sets import KEY
from support.platforms import kubernetes
from support.workloads import WorkloadClient
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.assertions import ASSERTION_TYPE
from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE

ONE_METHOD = "Send no client authentication with this grant: the assertion identifies the client."


@pytest.fixture
def workload(authserver: AuthServer) -> WorkloadClient:
    return WorkloadClient(authserver, kubernetes(authserver.clock))


def invalid_request(workload: WorkloadClient, response: TestResponse, reason: str) -> None:
    assert (response.status_code, response.json["error"]) == (400, "invalid_request")
    assert response.json["error_description"] == reason
    [row] = workload.server.audit(request_id=response.json["request_id"])
    assert (row["outcome"], row["reason"]) == ("refused", reason)


def test_a_workload_needs_nothing_but_its_token(workload: WorkloadClient) -> None:
    token = workload.platform.token()
    response = workload.server.post_token({"grant_type": GRANT_TYPE, "assertion": token})
    assert response.json.keys() == {"token_type", "access_token", "expires_in", "scope"}
    _, claims = workload.server.read_token(response)
    assert claims["client_id"] == workload.client.client_id


def test_a_missing_assertion_is_an_invalid_request(workload: WorkloadClient) -> None:
    workload.accepted("grant")
    response = workload.server.post_token({"grant_type": GRANT_TYPE})
    reason = "assertion is missing. Send the token that the platform issued to the workload."
    invalid_request(workload, response, reason)


@pytest.mark.parametrize(
    "parameters",
    [
        {"client_secret": "gths_any"},
        {"client_assertion": "a.b.c"},
        {"client_assertion_type": ASSERTION_TYPE},
        {"client_assertion": "a.b.c", "client_assertion_type": ASSERTION_TYPE},
    ],
    ids=" ".join,
)
def test_a_second_credential_is_refused(workload: WorkloadClient, parameters: dict[str, str]) -> None:
    """Which of the two would decide? RFC 6749 2.3."""
    workload.accepted("grant")
    invalid_request(workload, workload.post("grant", workload.platform.token(), **parameters), ONE_METHOD)


@pytest.mark.parametrize("authorization", ["Basic", "Bearer abc", "valid"])
def test_an_authorization_header_is_refused(workload: WorkloadClient, authorization: str) -> None:
    workload.accepted("grant")
    other, secret = workload.server.create_client()
    header = basic_header(other.client_id, secret) if authorization == "valid" else authorization
    form = {"grant_type": GRANT_TYPE, "assertion": workload.platform.token()}
    response = workload.server.post_token(form, headers={"Authorization": header})
    invalid_request(workload, response, ONE_METHOD)


def test_the_assertion_is_no_authentication_for_another_grant(workload: WorkloadClient) -> None:
    """`none` is good for this grant alone, never for `client_credentials`."""
    token = workload.platform.token()
    workload.accepted("grant", token)
    for parameters in ({}, {"client_id": workload.client.client_id}):
        response = workload.server.post_token(token_form(assertion=token, **parameters))
        assert (response.status_code, response.json["error"]) == (401, "invalid_client")
        [row] = workload.server.audit(request_id=response.json["request_id"])
        assert row["reason"] == "no client authentication in the request"


def test_a_client_id_alone_gets_nothing(workload: WorkloadClient) -> None:
    workload.accepted("grant")
    response = workload.server.post_token({"grant_type": GRANT_TYPE, "client_id": workload.client.client_id})
    assert (response.status_code, response.json["error"]) == (400, "invalid_request")


def test_a_client_with_a_key_of_its_own_cannot_use_the_grant(workload: WorkloadClient) -> None:
    """Its assertions are for client authentication; as a grant, they would be spent nowhere."""
    client = KeyClient(workload.server, KEY, jwks(public_jwk(KEY)))
    client.accepted()
    reason = f"platform token: no trusted issuer has the iss {client.client.client_id}"
    workload.refused("grant", client.assertion(), reason)


def test_an_id_jag_is_refused(workload: WorkloadClient) -> None:
    """draft-ietf-oauth-identity-assertion-authz-grant: it is sent by the same grant and stands for a user."""
    workload.accepted("grant")
    token = workload.platform.token(header={"typ": "oauth-id-jag+jwt"}, client_id=workload.client.client_id)
    workload.refused("grant", token, "platform token: typ is oauth-id-jag+jwt, not that of a platform token")


def test_refusals_are_the_same_for_every_reason(workload: WorkloadClient) -> None:
    """The response reveals neither which issuers are trusted nor which workloads are registered."""
    refused = {
        "malformed": "a.b.c",
        "unknown issuer": workload.platform.token(iss="https://elsewhere.example.com"),
        "signature": workload.platform.token(header={"kid": "another"}),
        "expired": workload.platform.token(exp=1),
        "workload": workload.platform.token(**{"kubernetes.io": None}),
    }
    workload.accepted("grant")
    answers = set()
    for token in refused.values():
        response = workload.post("grant", token)
        answers.add((response.status_code, response.json["error"], response.json["error_description"]))
        assert response.headers["Cache-Control"] == "no-store"
        assert "WWW-Authenticate" not in response.headers
    description = (
        "The assertion is not accepted. Check its issuer, audience and lifetime, and that this workload is registered."
    )
    assert answers == {(400, "invalid_grant", description)}
    reasons = [row["reason"] for row in workload.server.audit(action="token.issue") if row["outcome"] == "refused"]
    assert len(set(reasons)) == len(refused)


def test_a_long_client_id_is_recorded_in_part(workload: WorkloadClient) -> None:
    workload.accepted("grant")
    response = workload.post("grant", workload.platform.token(), client_id="a" * 20_000)
    assert response.status_code == 400
    [row] = workload.server.audit(request_id=response.json["request_id"])
    assert len(row["actor"]) < 600
    assert row["reason"].startswith(f"platform token: client_id is {'a' * 100}, and the token stands for")


def test_the_grant_identifies_nobody_without_a_trusted_issuer(authserver: AuthServer) -> None:
    platform = kubernetes(authserver.clock)
    response = authserver.post_token({"grant_type": GRANT_TYPE, "assertion": platform.token()})
    assert (response.status_code, response.json["error"]) == (400, "invalid_grant")
