"""Attacks by workloads that resemble a trusted one, in their subjects and other claims.

Each test first sends the token of the trusted workload, in the same way.
"""

from collections.abc import Callable
from typing import Any

import pytest
from support.attacked_workloads import workload
from support.authserver import AuthServer
from support.platforms import PLATFORMS, TRUST_DOMAIN, github, kubernetes
from support.workloads import FORMS, WorkloadClient, Workloads

from gatehouse.authserver.workloads.registration import remove_issuer

NO_RULE = "platform token: no rule of this issuer names this workload"

NAMESPACE, ACCOUNT = "/kubernetes.io/namespace", "/kubernetes.io/serviceaccount/name"
SUBJECT = "system:serviceaccount:prod:agent"
JOB = "repo:acme/ops:ref:refs/heads/main"


def refused(client: WorkloadClient, form: str, token: str, unmet: str | None) -> None:
    """Check that a token matches no rule, because none names it or because of these claims."""
    rule = client.rule
    reason = f"platform token: no rule matches; the rule {rule.rule_id} of {rule.client_id} requires another {unmet}"
    client.refused(form, token, NO_RULE if unmet is None else reason)


def pod(**changes: Any) -> dict[str, Any]:
    """Return the private claims of the trusted pod with changes."""
    members = {"namespace": "prod", "serviceaccount": {"name": "agent"}}
    return {"kubernetes.io": {**members, **changes}}


@pytest.fixture(scope="module")
def by_subject(new_shared_authserver: Callable[[], AuthServer]) -> Workloads:
    """Workloads that rules name by their subjects, each on its kind of platform."""
    server = new_shared_authserver()
    platforms = [make(server.clock) for make in PLATFORMS.values()]
    return {one.kind: WorkloadClient(server, one, {"sub": one.workload["sub"]}) for one in platforms}


# Workloads that look like the trusted one.


@pytest.mark.threat("T-203")
@pytest.mark.parametrize(
    "subject",
    [
        pytest.param(f"{SUBJECT}-evil", id="suffix"),
        pytest.param(f"x{SUBJECT}", id="prefix"),
        pytest.param(SUBJECT[:-1], id="shorter"),
        pytest.param("system:serviceaccount:prod-evil:agent", id="longer-namespace"),
        pytest.param("system:serviceaccount:agent:prod", id="swapped"),
        pytest.param("system:serviceaccount:prod", id="namespace-only"),
        pytest.param(SUBJECT.upper(), id="case"),
        pytest.param(f"{SUBJECT} ", id="space"),
        pytest.param(f"{SUBJECT}\n", id="newline"),
        pytest.param(f"{SUBJECT}\x00", id="nul"),
        pytest.param(f"{SUBJECT}\u200b", id="invisible"),
        pytest.param(SUBJECT.replace("a", "\u0430"), id="cyrillic"),
        pytest.param(SUBJECT.replace(":", "\uff1a"), id="full-width"),
        pytest.param(SUBJECT.replace(":", "%3A"), id="percent"),
        pytest.param(f"{SUBJECT},system:serviceaccount:prod:other", id="list-in-a-text"),
    ],
)
def test_a_subject_that_resembles_the_trusted_one_is_refused(by_subject: Workloads, subject: str) -> None:
    """CWE-185, CWE-187: a comparison of a part, or after a normalization, trusts what a tenant can register."""
    client = by_subject["kubernetes"]
    for form in FORMS:
        client.accepted(form)
        refused(client, form, client.platform.token(sub=subject), None)


@pytest.mark.threat("T-203")
@pytest.mark.parametrize("subject", [None, [SUBJECT], {SUBJECT: True}, 0, True, ""])
def test_a_subject_that_is_no_text_is_refused(by_subject: Workloads, subject: Any) -> None:
    """RFC 7519 4.1.2; CWE-843: an array that holds the trusted subject is not that subject."""
    client = by_subject["kubernetes"]
    for form in FORMS:
        client.accepted(form)
        client.refused(form, client.platform.token(sub=subject), "platform token: sub is missing")


@pytest.mark.threat("T-203")
@pytest.mark.parametrize(
    "changes",
    [
        pytest.param(pod(namespace="prod-evil"), id="longer-namespace"),
        pytest.param(pod(serviceaccount={"name": "agent-evil"}), id="longer-name"),
        pytest.param(pod(namespace="agent", serviceaccount={"name": "prod"}), id="swapped"),
        pytest.param(pod(namespace=["prod"]), id="namespace-in-an-array"),
        pytest.param(pod(namespace={"prod": 1}), id="namespace-in-an-object"),
        pytest.param(pod(serviceaccount=[{"name": "agent"}]), id="account-in-an-array"),
        pytest.param(pod(serviceaccount="agent"), id="account-as-text"),
        pytest.param(pod(serviceaccount={"name": ["agent"]}), id="name-in-an-array"),
        pytest.param({"kubernetes.io": [{"namespace": "prod", "serviceaccount": {"name": "agent"}}]}, id="array"),
        pytest.param({"kubernetes.io": '{"namespace": "prod"}'}, id="text"),
        pytest.param({"kubernetes.io": None, NAMESPACE: "prod", ACCOUNT: "agent"}, id="pointers-as-names"),
        pytest.param(
            {"kubernetes.io": None, NAMESPACE[1:]: "prod", ACCOUNT[1:]: "agent", "kubernetes": {"io": {}}},
            id="flat-names",
        ),
        pytest.param({"kubernetes.io": None, "ext": pod()}, id="elsewhere"),
        pytest.param(pod(namespace='prod","agent'), id="a-text-that-ends-the-json"),
    ],
)
def test_a_nested_claim_that_resembles_the_trusted_one_is_refused(
    workloads: Workloads, changes: dict[str, Any]
) -> None:
    """CWE-843 and CWE-706: the place and the type of a claim count, and arrays are not searched."""
    client = workloads["kubernetes"]
    for form in FORMS:
        client.accepted(form, client.platform.token(**pod()))
        refused(client, form, client.platform.token(**changes), None)


@pytest.mark.threat("T-203")
def test_a_job_of_a_forks_pull_request_is_refused(authserver: AuthServer) -> None:
    """GitHub Security Lab, "Preventing pwn requests": anyone who opens a pull request decides what its job does."""
    for number, conditions in enumerate(({"sub": JOB}, github(authserver.clock).conditions)):
        platform = github(authserver.clock, name=f"github{number}")
        client = WorkloadClient(authserver, platform, conditions)
        inside = github(authserver.clock, ref="refs/pull/7/merge", name=platform.name)
        fork = github(authserver.clock, repository="mallory/ops", name=platform.name)
        for form in FORMS:
            client.accepted(form)
            refused(client, form, inside.token(), None if "sub" in conditions else "ref")
            refused(client, form, fork.token(), None)
        with authserver.services.database.write() as session:
            remove_issuer(session, authserver.admin, platform.name)
        authserver.clock.advance(1)


@pytest.mark.threat("T-203")
@pytest.mark.parametrize(
    ("changes", "unmet"),
    [
        pytest.param({"ref": "refs/tags/main"}, "ref", id="tag-of-the-same-name"),
        pytest.param({"ref": "refs/heads/main-evil"}, "ref", id="longer-branch"),
        pytest.param({"ref": "refs/heads/refs/heads/main"}, "ref", id="branch-named-like-a-ref"),
        pytest.param({"ref": "main"}, "ref", id="short-name"),
        pytest.param({"ref": ["refs/heads/main"]}, "ref", id="array"),
        pytest.param({"ref": None}, "ref", id="missing"),
        pytest.param({"ref": None, "environment": "refs/heads/main"}, "ref", id="environment-of-that-name"),
        pytest.param({"repository_id": "1"}, None, id="other-repository"),
        pytest.param({"repository_id": 4_012_345}, None, id="id-as-number"),
        pytest.param({"repository_id": None}, None, id="no-id"),
    ],
)
def test_a_job_that_resembles_the_trusted_one_is_refused(
    workloads: Workloads, changes: dict[str, Any], unmet: str | None
) -> None:
    """GitHub, "About security hardening with OpenID Connect": tenants choose the names of branches and tags."""
    client = workloads["github"]
    for form in FORMS:
        client.accepted(form)
        refused(client, form, client.platform.token(**changes), unmet)


@pytest.mark.threat("T-203")
def test_a_recycled_name_does_not_get_what_its_former_owner_had(authserver: AuthServer) -> None:
    """Astrix, "Sub:jugation"; Boost Security, "Sleeper Squats" (2026): names pass to others, and ids do not."""
    job = github(authserver.clock)
    client = WorkloadClient(authserver, job, {"sub": JOB, "repository_id": job.workload["repository_id"]})
    project = workload(authserver, "gitlab")
    account = kubernetes(authserver.clock)
    uid = account.workload["kubernetes.io"]["serviceaccount"]["uid"]
    agent = WorkloadClient(authserver, account, {"sub": SUBJECT, "/kubernetes.io/serviceaccount/uid": uid})
    for form in FORMS:
        for trusted, changes, unmet in (
            (client, {"repository_id": "9"}, "repository_id"),
            (project, {"project_id": "9"}, "project_id"),
            (agent, pod(serviceaccount={"name": "agent", "uid": "9"}), "/kubernetes.io/serviceaccount/uid"),
        ):
            trusted.accepted(form)
            refused(trusted, form, trusted.platform.token(**changes), unmet)


@pytest.mark.threat("T-203")
@pytest.mark.parametrize(
    ("kind", "subject"),
    [
        ("github", "repo:acme/ops-evil:ref:refs/heads/main"),
        ("github", "repo:acme-1/ops-2:ref:refs/heads/main"),
        ("github", "repo:Acme/Ops:ref:refs/heads/main"),
        ("github", "repo:acme/ops:pull_request"),
        ("github", "repo:acme/ops:environment:ref:refs/heads/main"),
        ("github", "environment:repo:acme/ops:ref:refs/heads/main"),
        ("gitlab", "project_path:acme/ops:ref_type:tag:ref:main"),
        ("gitlab", "project_path:acme/ops:ref_type:branch:ref:main-evil"),
        ("gitlab", "project_path:acme/ops/sub:ref_type:branch:ref:main"),
        ("spiffe", f"{TRUST_DOMAIN}/ns/prod/sa/agent/"),
        ("spiffe", f"{TRUST_DOMAIN}/ns/prod/sa/agent/evil"),
        ("spiffe", f"{TRUST_DOMAIN}/ns/test/../prod/sa/agent"),
        ("spiffe", f"{TRUST_DOMAIN}//ns/prod/sa/agent"),
        ("spiffe", f"{TRUST_DOMAIN}/ns/prod/sa/%61gent"),
        ("spiffe", f"{TRUST_DOMAIN}/ns/prod/sa/Agent"),
    ],
)
def test_a_subject_of_another_platform_that_resembles_the_trusted_one_is_refused(
    by_subject: Workloads, kind: str, subject: str
) -> None:
    """SPIFFE-ID 2.2 forbids normalization; GitHub and GitLab compose subjects of names that tenants choose."""
    client = by_subject[kind]
    for form in FORMS:
        client.accepted(form)
        refused(client, form, client.platform.token(sub=subject), None)
