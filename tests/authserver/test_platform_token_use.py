"""Platform tokens for one use and for several, the limit of requests, and revocation by a workload."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import product
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select
from support.authserver import AuthServer
from support.clock import FakeClock
from support.databases import Template
from support.forging import decode, encode
from support.platforms import PLATFORMS, github, kubernetes, spiffe
from support.workloads import FORMS, REFUSALS, WorkloadClient

from gatehouse.authserver.clients.assertions import ASSERTION_TYPE, ReplayStore
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import read_unverified_claims

USED = "platform token: it was used before"
ORDER = int("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
"""Of the group of P-256 (FIPS 186-5, SP 800-186)."""


@pytest.fixture
def workload(authserver: AuthServer) -> WorkloadClient:
    """A pod, whose token can be used again."""
    return WorkloadClient(authserver, kubernetes(authserver.clock))


@pytest.fixture
def job(authserver: AuthServer) -> WorkloadClient:
    """A job of GitHub Actions, whose token is for one use."""
    return WorkloadClient(authserver, github(authserver.clock))


@pytest.mark.both_databases
def test_a_token_for_one_use_is_used_once_in_either_form(job: WorkloadClient) -> None:
    for first, second in product(FORMS, FORMS):
        token = job.platform.token()
        job.accepted(first, token)
        row = job.refused(second, token, USED)
        assert row["detail"]["remediation"].startswith("Request a new token from the platform for each token request.")
        job.accepted(second)


@pytest.mark.both_databases
def test_one_of_two_concurrent_uses_of_a_token_is_accepted(job: WorkloadClient) -> None:
    for form in FORMS:
        job.accepted(form)
        token = job.platform.token()
        with ThreadPoolExecutor(8) as pool:
            responses = list(pool.map(job.post, [form] * 8, [token] * 8))
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [200] + [REFUSALS[form][0]] * 7, form


def test_a_token_for_one_use_needs_no_jti(authserver: AuthServer) -> None:
    """Kubernetes before 1.30 signs tokens without one (keycloak-community#180)."""
    client = WorkloadClient(authserver, kubernetes(authserver.clock), one_time=True)
    token = client.platform.token(jti=None)
    client.accepted("grant", token)
    client.refused("grant", token, USED)
    client.accepted("grant", client.platform.token(jti=None, nbf=None))


def malleated(token: str) -> str:
    """Return a token with the other valid ES256 signature of the same content: (r, n - s) for (r, s)."""
    signed, _, signature = token.rpartition(".")
    r, s = decode(signature)[:32], int.from_bytes(decode(signature)[32:], "big")
    return f"{signed}.{encode(r + (ORDER - s).to_bytes(32, 'big'))}"


def test_another_signature_of_one_token_is_no_second_use(authserver: AuthServer) -> None:
    """ECDSA is malleable: another valid signature can be computed from a token, without the key."""
    platform = kubernetes(authserver.clock, name="cluster-es256", alg="ES256")
    assert isinstance(platform.key.key.private_key, ec.EllipticCurvePrivateKey)
    client = WorkloadClient(authserver, platform, one_time=True)
    first, second = platform.token(), platform.token()
    client.accepted("grant", malleated(first))
    client.refused("grant", first, USED)
    client.accepted("grant", second)
    client.refused("grant", malleated(second), USED)


@pytest.mark.parametrize("kind", ["kubernetes", "gitlab", "spiffe", "oidc"])
def test_a_token_that_a_platform_hands_out_again_may_be_used_again(authserver: AuthServer, kind: str) -> None:
    client = WorkloadClient(authserver, PLATFORMS[kind](authserver.clock))
    token = client.platform.token()
    for form in FORMS:
        for _ in range(3):
            client.accepted(form, token)
        with authserver.services.database.read() as session:
            assert session.scalars(select(SpentAssertionRow)).all() == [], form


def test_a_used_token_is_remembered_until_it_expires(job: WorkloadClient) -> None:
    server, token = job.server, job.platform.token()
    job.accepted("grant", token)
    server.clock.advance(300 + LEEWAY - 1)
    ReplayStore(server.services.database, server.clock).prune()
    job.refused("grant", token, USED)
    server.clock.advance(1)
    job.refused("grant", token, "platform token: expired 30 s ago")


def test_a_refused_token_for_one_use_is_not_spent(job: WorkloadClient) -> None:
    """Otherwise a token for another audience would use up the digest, or a wrong client_id the token."""
    token = job.platform.token()
    assert job.post("grant", token, client_id="agent_" + "0" * 20).status_code == 400
    job.accepted("grant", token)


@pytest.fixture
def limited(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """A server that allows each client two token requests, and two revocations, a minute."""
    limits = {"limit_token_requests": "2/minute", "limit_revocations": "2/minute"}
    with closing(AuthServer(tmp_path / "limited", authserver_template, clock, workers=1, **limits)) as server:
        yield server


@pytest.mark.parametrize("form", FORMS)
def test_a_request_past_the_limit_leaves_the_token_unused(limited: AuthServer, form: str) -> None:
    job = WorkloadClient(limited, github(limited.clock))
    first, second, third = (job.platform.token() for _ in range(3))
    job.accepted(form, first)
    job.accepted(form, second)
    assert job.post(form, third).status_code == 429
    job.refused(form, first, USED)
    limited.clock.advance(60)
    job.accepted(form, third)


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_may_be_used_again_counts_in_the_limit(limited: AuthServer, form: str) -> None:
    workload = WorkloadClient(limited, kubernetes(limited.clock))
    token = workload.platform.token()
    statuses = [workload.post(form, token).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


def revoke(client: WorkloadClient, access_token: str, **form: str) -> int:
    """Send a revocation request, by default with a platform token as client assertion. Return the status."""
    credentials = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": client.platform.token()}
    response = client.server.http.post("/revoke", data={"token": access_token, **(form or credentials)})
    return response.status_code


@pytest.mark.parametrize("kind", ["kubernetes", "github"])
def test_a_workload_revokes_its_own_tokens(authserver: AuthServer, kind: str) -> None:
    client = WorkloadClient(authserver, PLATFORMS[kind](authserver.clock))
    other = WorkloadClient(authserver, spiffe(authserver.clock))
    own, foreign = (one.post("assertion", one.platform.token()).json["access_token"] for one in (client, other))
    assert revoke(client, own) == 200
    assert revoke(client, foreign) == 200
    rows = authserver.audit(action="token.revoke")
    assert [(row["outcome"], row["actor"]) for row in rows] == [
        ("allowed", client.client.client_id),
        ("refused", client.client.client_id),
    ]
    assert rows[0]["jti"] == read_unverified_claims(own)["jti"]


def test_an_assertion_that_is_a_grant_revokes_nothing(workload: WorkloadClient) -> None:
    """`none` is good for the grant alone."""
    access_token = workload.post("grant", workload.platform.token()).json["access_token"]
    assert revoke(workload, access_token, assertion=workload.platform.token()) == 401
    assert revoke(workload, access_token, client_id=workload.client.client_id) == 401
    assert revoke(workload, access_token) == 200


def test_a_replayed_or_refused_token_revokes_nothing(job: WorkloadClient) -> None:
    token = job.platform.token()
    access_token = job.post("assertion", token).json["access_token"]
    for assertion in (token, job.platform.token(exp=None)):
        assert revoke(job, access_token, client_assertion_type=ASSERTION_TYPE, client_assertion=assertion) == 401
    assert revoke(job, access_token) == 200


def test_a_revocation_past_the_limit_leaves_the_token_unused(limited: AuthServer) -> None:
    job = WorkloadClient(limited, github(limited.clock))
    token = job.platform.token()
    form = {"client_assertion_type": ASSERTION_TYPE, "client_assertion": token}
    assert [revoke(job, "x"), revoke(job, "x"), revoke(job, "x", **form)] == [200, 200, 429]
    limited.clock.advance(60)
    assert revoke(job, "x", **form) == 200


def test_a_platform_token_introspects_nothing(workload: WorkloadClient) -> None:
    token = workload.platform.token()
    workload.accepted("assertion", token)
    form = {"token": "x", "client_assertion_type": ASSERTION_TYPE, "client_assertion": token}
    assert workload.server.http.post("/introspect", data=form).status_code == 401
