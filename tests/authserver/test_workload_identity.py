"""Workloads get access tokens for the tokens of their platform: what is granted and recorded, and what ends it."""

import pytest
from sqlalchemy import select, update
from support.authserver import OTHER_RESOURCE, RESOURCE, AuthServer
from support.platforms import PLATFORMS, github, kubernetes, spiffe
from support.workloads import (
    FORMS,
    WorkloadClient,
    accepted_in_both_forms,
    add_trust,
    refused_in_both_forms,
    trust,
)

from gatehouse.authserver.clients.registration import delete_client, set_disabled
from gatehouse.authserver.db.models import ClientRow, TrustRuleRow
from gatehouse.authserver.tokens.issue import MIN_BLOCK
from gatehouse.authserver.workloads.registration import remove_issuer, set_issuer_disabled
from gatehouse.authserver.workloads.rule_registration import remove_rule
from gatehouse.shared.service.cache import MAX_AGE

NO_RULE = "platform token: no rule of this issuer names this workload"


@pytest.fixture
def workload(authserver: AuthServer) -> WorkloadClient:
    """A pod, whose token can be used again."""
    return WorkloadClient(authserver, kubernetes(authserver.clock))


@pytest.mark.both_databases
@pytest.mark.parametrize("kind", PLATFORMS)
def test_a_token_of_each_kind_of_platform_gets_an_access_token(authserver: AuthServer, kind: str) -> None:
    client = WorkloadClient(authserver, PLATFORMS[kind](authserver.clock))
    for form in FORMS:
        claims = client.accepted(form)
        assert (claims["aud"], claims["scope"], claims["exp"] - claims["iat"]) == (RESOURCE, "env:read", 300), form


@pytest.mark.parametrize("alg", ["RS256", "PS256", "ES256", "EdDSA"])
@pytest.mark.parametrize("kind", ["spiffe", "oidc"])
def test_a_token_of_each_algorithm_is_accepted(authserver: AuthServer, kind: str, alg: str) -> None:
    make = spiffe if kind == "spiffe" else PLATFORMS["oidc"]
    WorkloadClient(authserver, make(authserver.clock, name=f"platform-{alg.lower()}", alg=alg)).accepted("grant")


def test_a_svid_may_be_sent_as_an_assertion_of_either_type(authserver: AuthServer) -> None:
    """draft-ietf-oauth-spiffe-client-auth names `jwt-spiffe`; agents that know only RFC 7523 send `jwt-bearer`."""
    client = WorkloadClient(authserver, spiffe(authserver.clock))
    client.accepted("assertion")
    response = client.post_svid(client.platform.token())
    assert authserver.read_token(response)[1]["client_id"] == client.client.client_id


def test_another_token_is_no_svid(authserver: AuthServer, workload: WorkloadClient) -> None:
    workload.accepted("assertion")
    response = workload.post_svid(workload.platform.token())
    reason = "platform token: client_assertion_type is for SPIFFE, and the issuer is of another kind"
    workload.check_refusal("assertion", response, reason)


def test_scope_and_resource_are_those_of_the_client(workload: WorkloadClient) -> None:
    """The identity is federated, and the rights are not."""
    server = workload.server
    server.add_resource(OTHER_RESOURCE)
    server.add_grant(workload.client, "env:write", RESOURCE)
    server.add_grant(workload.client, "org:read", OTHER_RESOURCE)
    token = workload.platform.token()
    for form in FORMS:
        for parameters, scope in (
            ({"resource": RESOURCE}, "env:read env:write"),
            ({"resource": RESOURCE, "scope": "env:read org:read"}, "env:read"),
            ({"resource": OTHER_RESOURCE}, "org:read"),
        ):
            response = workload.post(form, token, **parameters)
            assert response.status_code == 200, (form, response.text)
            assert response.json["scope"] == scope, form
            assert response.headers["Cache-Control"] == "no-store", form
        for parameters, error in (
            ({}, "invalid_target"),
            ({"resource": "https://elsewhere.example.com/mcp"}, "invalid_target"),
            ({"resource": OTHER_RESOURCE, "scope": "env:read"}, "invalid_scope"),
        ):
            response = workload.post(form, token, **parameters)
            assert (response.status_code, response.json.get("error")) == (400, error), form


def test_a_sent_client_id_must_be_that_of_the_rule(workload: WorkloadClient) -> None:
    client_id = workload.client.client_id
    other = workload.server.create_client(auth_method="workload_identity")[0].client_id
    reason = f"platform token: client_id is {other}, and the token stands for {client_id}"
    for form in FORMS:
        assert workload.post(form, workload.platform.token(), client_id=client_id).status_code == 200, form
        row = workload.refused(form, workload.platform.token(), reason, client_id=other)
        assert row["actor"] == f"claimed:{other}", form


@pytest.mark.both_databases
def test_the_audit_log_names_the_workload_beside_the_client(workload: WorkloadClient) -> None:
    for form in FORMS:
        claims = workload.accepted(form)
        platform = workload.platform
        external = {"external_issuer": platform.issuer, "external_subject": platform.workload["sub"]}
        [issued] = workload.server.audit(action="token.issue", jti=claims["jti"])
        assert (issued["actor"], issued["jti"]) == (workload.client.client_id, claims["jti"]), form
        assert issued["detail"].items() >= external.items(), form
        refused = workload.refused(form, platform.token(exp=None), "platform token: exp is missing")
        assert refused["action"] == "token.issue", form
        assert refused["actor"] == f"claimed:{platform.workload['sub']}", form
        assert refused["detail"].items() >= external.items(), form
        assert refused["detail"]["remediation"] == "Request a token that expires from the platform.", form


@pytest.mark.both_databases
def test_hostile_names_in_a_token_are_recorded_as_text(workload: WorkloadClient) -> None:
    """CWE-117. PostgreSQL stores no NUL in a text, and a terminal acts upon escapes."""
    for form in FORMS:
        workload.accepted(form)
        hostile = {"iss": "https://a.example/\x1b[2J\x00", "sub": "agent\n\x00" + "x" * 5000}
        reason = "platform token: no trusted issuer has the iss https://a.example/\\x1b[2J\\x00"
        row = workload.refused(form, workload.platform.token(**hostile), reason)
        assert row["detail"]["external_issuer"] == "https://a.example/\\x1b[2J\\x00", form
        assert row["detail"]["external_subject"].startswith("agent\\x0a\\x00xxx"), form
        assert len(row["detail"]["external_subject"]) < 600, form
        assert row["actor"].startswith("claimed:agent\\x0a\\x00xxx"), form


def test_no_token_reaches_the_audit_log(workload: WorkloadClient) -> None:
    accepted, refused = workload.platform.token(), workload.platform.token(aud="https://elsewhere.example.com")
    for form in FORMS:
        workload.accepted(form, accepted)
        workload.post(form, refused)
    log = repr(workload.server.audit())
    for token in (accepted, refused):
        assert not any(part in log for part in token.split("."))


@pytest.mark.both_databases
def test_the_last_use_of_a_rule_is_known(workload: WorkloadClient) -> None:
    server = workload.server
    used = select(TrustRuleRow.last_used_at).where(TrustRuleRow.rule_id == workload.rule.rule_id)
    workload.refused("grant", workload.platform.token(exp=None), "platform token: exp is missing")
    server.services.last_use.write()
    with server.services.database.read() as session:
        assert session.scalar(used) is None
    workload.accepted("grant")
    server.services.last_use.write()
    with server.services.database.read() as session:
        assert session.scalar(used) == int(server.clock())


@pytest.mark.parametrize("change", ["disabled", "deleted", "rule removed", "issuer disabled", "issuer removed"])
def test_a_change_takes_effect_within_a_second(workload: WorkloadClient, change: str) -> None:
    server, issuer, client_id = workload.server, workload.issuer, workload.client.client_id
    accepted_in_both_forms(workload)
    with server.services.database.write() as session:
        match change:
            case "disabled":
                set_disabled(session, server.admin, client_id, disabled=True)
            case "deleted":
                delete_client(session, server.admin, client_id)
            case "rule removed":
                remove_rule(session, server.admin, client_id, workload.rule.rule_id)
            case "issuer disabled":
                set_issuer_disabled(session, server.admin, issuer.name, disabled=True)
            case _:
                remove_issuer(session, server.admin, issuer.name)
    server.clock.advance(MAX_AGE)
    unknown = f"platform token: no trusted issuer has the iss {issuer.issuer}"
    reasons = {"disabled": "client is disabled", "issuer disabled": unknown, "issuer removed": unknown}
    refused_in_both_forms(workload, workload.platform.token(), reasons.get(change, NO_RULE))


@pytest.mark.parametrize("form", FORMS)
def test_a_client_that_is_disabled_meanwhile_is_refused_as_the_form_requires(
    workload: WorkloadClient, form: str
) -> None:
    """A server that still takes the client for enabled learns it when it reserves indices for further tokens."""
    workload.accepted(form)
    with workload.server.services.database.write() as session:
        set_disabled(session, workload.server.admin, workload.client.client_id, disabled=True)
    responses = (workload.post(form, workload.platform.token()) for _ in range(MIN_BLOCK))
    refused = next(response for response in responses if response.status_code != 200)
    workload.check_refusal(form, refused, "client was disabled since it authenticated")


def test_an_enabled_issuer_and_client_work_again(workload: WorkloadClient) -> None:
    server, client_id = workload.server, workload.client.client_id
    for disabled in (True, False):
        with server.services.database.write() as session:
            set_issuer_disabled(session, server.admin, workload.issuer.name, disabled=disabled)
            set_disabled(session, server.admin, client_id, disabled=disabled)
        server.clock.advance(MAX_AGE)
        assert workload.post("grant", workload.platform.token()).status_code == (400 if disabled else 200)


def test_a_client_that_is_deleted_while_its_rule_is_in_memory_is_refused(workload: WorkloadClient) -> None:
    server, client_id = workload.server, workload.client.client_id
    # The client is read before the rule, so it is read again while the rule is still in memory.
    assert server.post_token(basic=(client_id, "gths_wrong")).status_code == 401
    server.clock.advance(MAX_AGE / 2)
    accepted_in_both_forms(workload)
    with server.services.database.write() as session:
        delete_client(session, server.admin, client_id)
    server.clock.advance(MAX_AGE / 2)
    refused_in_both_forms(workload, workload.platform.token(), "client was deleted meanwhile")


def test_a_client_registered_for_another_method_is_refused(workload: WorkloadClient) -> None:
    """Only a database that was changed by hand can have such a rule."""
    accepted_in_both_forms(workload)
    with workload.server.services.database.write() as session:
        row = update(ClientRow).where(ClientRow.client_id == workload.client.client_id)
        session.execute(row.values(token_endpoint_auth_method="client_secret_basic"))
    workload.server.clock.advance(MAX_AGE)
    reason = "used a platform token, registered for client_secret_basic"
    refused_in_both_forms(workload, workload.platform.token(), reason)


@pytest.mark.both_databases
def test_an_outage_of_the_database_is_not_a_refusal(workload: WorkloadClient) -> None:
    accepted_in_both_forms(workload)
    workload.server.clock.advance(MAX_AGE)
    workload.server.take_database_away()
    for form in FORMS:
        assert workload.post(form, workload.platform.token()).status_code == 503, form


def test_one_client_may_have_workloads_on_several_platforms(workload: WorkloadClient) -> None:
    server = workload.server
    job = github(server.clock)
    trust(server, job)
    add_trust(server, workload.client, job.name, job.conditions)
    workload.accepted("grant")
    workload.accepted("grant", job.token())
