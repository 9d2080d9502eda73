"""Which keys are tried for a platform token, and at what cost; which rule then decides."""

from dataclasses import replace
from typing import Any

import pytest
from support.authserver import ISSUER, AuthServer
from support.key_sets import OTHER_KEY
from support.platforms import CLUSTER_ISSUER, github, kubernetes
from support.workloads import FORMS, WorkloadClient, refused_in_both_forms, trust

from gatehouse.authserver.clients.assertions import read_jwt
from gatehouse.authserver.credentials.client_jwks import client_verification_keys
from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.issuer_update import IssuerUpdate, last_repetition, update_issuer
from gatehouse.authserver.workloads.platform_token import PlatformCredentials, Presented
from gatehouse.authserver.workloads.registry import MAX_SHARED, find_issuers
from gatehouse.authserver.workloads.verifier import Verified, WorkloadRefused, WorkloadVerifier
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.service.cache import MAX_AGE as CACHE_AGE

NO_KEYS = "platform token: no key of the issuer is known, or the key set is too old"
SIGNATURE = "platform token: signature does not match"


def clusters(server: AuthServer, kid: str | None = None) -> tuple[WorkloadClient, WorkloadClient]:
    """Return the same service account in two clusters, which both kept the default issuer, and named a key alike."""
    first, second = (kubernetes(server.clock, name=name) for name in ("cluster-one", "cluster-two"))
    for platform in (first, second):
        platform.keys = [replace(platform.key, kid=kid or platform.key.kid)]
    return WorkloadClient(server, first), WorkloadClient(server, second)


@pytest.mark.parametrize("kid", [None, "signing-key"], ids=["kids of their own", "one kid"])
def test_clusters_with_one_issuer_are_told_apart_by_their_keys(authserver: AuthServer, kid: str | None) -> None:
    first, second = clusters(authserver, kid)
    assert first.platform.issuer == second.platform.issuer == CLUSTER_ISSUER
    for form in FORMS:
        first.accepted(form)
        second.accepted(form)
        stranger = replace(kubernetes(authserver.clock, name="cluster-three").key, kid=first.platform.key.kid)
        first.refused(form, first.platform.token(key=stranger), SIGNATURE)


def test_two_issuers_that_publish_one_key_are_both_refused(authserver: AuthServer) -> None:
    """No signature would tell them apart. Only a fetched key set can come to this: registration refuses it."""
    first, second = clusters(authserver)
    first.accepted("grant")
    with authserver.services.database.write() as session:
        row = session.get_one(TrustedIssuerRow, second.issuer.name)
        row.jwks = first.platform.jwks().decode()
    authserver.clock.advance(CACHE_AGE)
    for form in FORMS:
        first.refused(form, first.platform.token(), NO_KEYS)


def test_a_token_that_two_issuers_signed_is_refused(authserver: AuthServer) -> None:
    first, second = clusters(authserver)
    issuers = find_issuers(authserver.services.database)
    verifier, now = WorkloadVerifier(ISSUER), authserver.clock()
    token = first.platform.token()
    credentials = PlatformCredentials(token, *read_jwt(token), Presented.GRANT)
    signed = issuers.possible(CLUSTER_ISSUER, None)
    assert verifier.accept(credentials, Verified((signed[0],)), issuers, now).issuer == first.issuer
    with pytest.raises(WorkloadRefused) as refusal:
        verifier.accept(credentials, Verified(tuple(signed)), issuers, now)
    names = f"{first.issuer.name}, {second.issuer.name}"
    assert refusal.value.reason == f"platform token: several trusted issuers signed it: {names}"


def test_the_rules_of_another_issuer_do_not_count(authserver: AuthServer) -> None:
    """The same subject in another cluster is another workload."""
    first, second = clusters(authserver)
    third = kubernetes(authserver.clock, name="cluster-three")
    trust(authserver, third)
    first.accepted("grant")
    second.accepted("grant")
    first.refused("grant", third.token(), "platform token: no rule of this issuer names this workload")


def test_rules_of_two_clients_that_match_are_refused(authserver: AuthServer) -> None:
    first = WorkloadClient(authserver, kubernetes(authserver.clock))
    first.accepted("grant")
    uid = first.platform.workload["kubernetes.io"]["serviceaccount"]["uid"]
    conditions = {**first.platform.conditions, "/kubernetes.io/serviceaccount/uid": uid}
    second = WorkloadClient(authserver, first.platform, conditions, issuer=first.issuer)
    authserver.clock.advance(CACHE_AGE)
    clients = ", ".join(sorted([first.client.client_id, second.client.client_id]))
    for form in FORMS:
        reason = f"platform token: rules of several clients match: {clients}"
        told = first.refused(form, first.platform.token(), reason)["detail"]["remediation"]
        assert told.startswith("Remove the rule of one of the clients: "), form
        for rule in (first.rule, second.rule):
            assert f"authserver client trust remove {rule.client_id} {rule.rule_id}" in told, form


def test_a_rule_that_matches_all_but_one_claim_is_named(authserver: AuthServer) -> None:
    job = WorkloadClient(authserver, github(authserver.clock))
    job.accepted("grant")
    rule = f"the rule {job.rule.rule_id} of {job.client.client_id}"
    reason = f"platform token: no rule matches; {rule} requires another ref"
    row = job.refused("grant", job.platform.token(ref="refs/heads/change"), reason)
    assert row["detail"]["remediation"] == "authserver client trust add CLIENT_ID --issuer github --claim sub=..."


def update(client: WorkloadClient, **changes: Any) -> None:
    """Change the trusted issuer of a client, and wait until the server has read it."""
    with client.server.services.database.write() as session:
        update_issuer(session, client.server.admin, client.issuer.name, IssuerUpdate(**changes))
    client.server.clock.advance(CACHE_AGE)


def test_a_longer_token_is_accepted_after_the_limit_was_raised(authserver: AuthServer) -> None:
    pod = WorkloadClient(authserver, kubernetes(authserver.clock))
    token = pod.platform.token(exp=int(authserver.clock()) + 7200)
    command = "authserver issuer update cluster --max-lifetime SECONDS"
    for form in FORMS:
        row = pod.refused(form, token, "platform token: valid for longer than 3600 s from now")
        assert row["detail"]["remediation"].endswith(f"or accept longer ones: {command}"), form
    update(pod, max_lifetime=7200)
    for form in FORMS:
        pod.accepted(form, token)
    update(pod, max_lifetime=600)
    refused_in_both_forms(pod, token, "platform token: valid for longer than 600 s from now")


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_was_used_before_single_use_is_accepted_once_more(authserver: AuthServer, form: str) -> None:
    """Which tokens were used is not known before. The command says so, and until when."""
    pod, now = WorkloadClient(authserver, kubernetes(authserver.clock)), int(authserver.clock())
    tokens = [pod.platform.token(exp=now + pod.issuer.max_lifetime + LEEWAY, jti=f"{number}") for number in range(2)]
    for _ in range(2):
        for token in tokens:
            pod.accepted(form, token)
    latest = last_repetition(pod.issuer, now)
    update(pod, one_time=True)
    pod.accepted(form, tokens[0])
    pod.refused(form, tokens[0], "platform token: it was used before")
    authserver.clock.now = latest
    pod.refused(form, tokens[1], f"platform token: expired {LEEWAY + 2} s ago")


@pytest.mark.parametrize("form", FORMS)
def test_a_token_that_was_used_under_a_larger_limit_is_accepted_once_more_at_its_end(
    authserver: AuthServer, form: str
) -> None:
    """The limit is about the rest of its life, so a lower one delays it only. The command does not hide that."""
    pod, now = WorkloadClient(authserver, kubernetes(authserver.clock)), int(authserver.clock())
    token = pod.platform.token(exp=now + pod.issuer.max_lifetime)
    pod.accepted(form, token)
    update(pod, max_lifetime=600)
    latest = last_repetition(replace(pod.issuer, max_lifetime=600), now)
    update(pod, one_time=True)
    pod.refused(form, token, "platform token: valid for longer than 600 s from now")
    authserver.clock.now = now + pod.issuer.max_lifetime - 600
    assert authserver.clock() > latest
    pod.accepted(form, token)
    pod.refused(form, token, "platform token: it was used before")


@pytest.mark.parametrize("form", FORMS)
def test_a_used_token_is_refused_again_when_single_use_returns(authserver: AuthServer, form: str) -> None:
    job = WorkloadClient(authserver, github(authserver.clock))
    token = job.platform.token()
    job.accepted(form, token)
    job.refused(form, token, "platform token: it was used before")
    update(job, one_time=False)
    job.accepted(form, token)
    update(job, one_time=True)
    job.refused(form, token, "platform token: it was used before")


@pytest.fixture
def verifications(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The `kid` of every key that a signature was verified with, on the event loop and in threads."""
    tried: list[str] = []
    verify = jws.verify

    def noting(token: str, header: jws.Header, key: jws.VerificationKey, *claims: Any) -> dict[str, Any]:
        tried.append(key.kid)
        return verify(token, header, key, *claims)

    monkeypatch.setattr(jws, "verify", noting)
    return tried


@pytest.mark.parametrize("alg", ["RS256", "ES256"])
def test_every_refused_signature_costs_the_maximum_of_verifications(
    authserver: AuthServer, verifications: list[str], alg: str
) -> None:
    """Otherwise the time of a refusal would tell which platforms and which keys are trusted (keycloak#26110)."""
    pod = WorkloadClient(authserver, kubernetes(authserver.clock, name=f"cluster-{alg.lower()}", alg=alg))
    stranger = kubernetes(authserver.clock, name=f"stranger-{alg.lower()}", alg=alg).key
    for form in FORMS:
        verifications.clear()
        pod.accepted(form)
        assert len(verifications) == 1, form
        refused = {
            "unknown issuer": pod.platform.token(iss="https://elsewhere.example.com"),
            "kid of no key": pod.platform.token(header={"kid": "another"}),
            "no kid": pod.platform.token(header={"kid": None}),
            "signature of another key": pod.platform.token(key=replace(stranger, kid=pod.platform.key.kid)),
        }
        for name, token in refused.items():
            verifications.clear()
            response = pod.post(form, token)
            assert response.status_code in {400, 401}, (form, name)
            assert len(verifications) == MAX_SHARED, (form, name)


def test_the_key_of_each_issuer_with_the_iss_is_tried(authserver: AuthServer, verifications: list[str]) -> None:
    """Exactly one must verify, so the other one is tried even after a match."""
    for cluster in clusters(authserver, "signing-key"):
        verifications.clear()
        cluster.accepted("grant")
        assert verifications == ["signing-key"] * 2


def test_the_decoy_key_authenticates_nobody(authserver: AuthServer) -> None:
    """Even the private half of the decoy key authenticates no workload."""
    pod = WorkloadClient(authserver, kubernetes(authserver.clock, name="cluster-es256", alg="ES256"))
    pod.accepted("grant")
    verifier = authserver.services.authenticator.workloads.verifier
    verifier.decoys["ES256"] = client_verification_keys(OTHER_KEY.public_jwk())[0]
    forged = pod.platform.token(key=replace(OTHER_KEY, kid="decoy"))
    pod.refused("grant", forged, "platform token: the issuer has no key with the kid decoy for ES256")
    unknown = pod.platform.token(key=OTHER_KEY, iss="https://elsewhere.example.com")
    pod.refused("grant", unknown, "platform token: no trusted issuer has the iss https://elsewhere.example.com")
