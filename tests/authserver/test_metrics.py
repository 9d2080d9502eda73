"""What the authorization server counts: every token request once, and why authentication failed."""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import generate_reference
import pytest
from support.assertions import KeyClient
from support.authserver import AuthServer, basic_header, token_form
from support.clock import FakeClock
from support.databases import Template
from support.http_client import http_client
from support.platforms import github, kubernetes, oidc
from support.workloads import FORMS, WorkloadClient, trust

import gatehouse.authserver
from gatehouse.authserver.app import build_app, close_services, create_services
from gatehouse.authserver.errors import ERRORS, AuthFailure
from gatehouse.authserver.grants.jwt_bearer import GRANT_TYPE as JWT_BEARER
from gatehouse.authserver.keys.lifecycle import KeyLifecycle, Policy, next_rotation
from gatehouse.authserver.metrics import METRICS
from gatehouse.authserver.workloads.registration import set_issuer_disabled
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.metrics import OTHER

KEY = SigningKey.generate("ES256")


@pytest.fixture
def measured(tmp_path: Path, authserver_template: Template, clock: FakeClock) -> Iterator[AuthServer]:
    """A server that measures."""
    server = AuthServer(tmp_path / "measured", authserver_template, clock, metrics_bind="127.0.0.1:9100")
    yield server
    server.close()


def series(server: AuthServer, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by the values of its labels, in the order of the definition, without zeros."""
    registry = server.services.metrics.registry
    assert registry is not None
    [metric] = [metric for metric in METRICS if metric.name == name]
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


def test_every_token_request_is_counted_once_by_its_outcome(measured: AuthServer) -> None:
    client, secret = measured.create_client()
    basic = client.client_id, secret
    wrong = client.client_id, "gths_wrong"
    assert measured.post_token(basic=basic).status_code == 200
    by_post, post_secret = measured.create_client(auth_method="client_secret_post")
    form = token_form(client_id=by_post.client_id, client_secret=post_secret)
    assert measured.post_token(form).status_code == 200
    assert measured.post_token(basic=wrong).status_code == 401
    assert measured.post_token(token_form(scope="env:none"), basic).status_code == 400
    assert measured.post_token({"grant_type": "urn:x"}, basic).status_code == 400
    assert measured.post_token(basic=basic, content_type="text/plain").status_code == 400
    assert measured.post_token(b"a" * 70_000).status_code == 413
    assert measured.http.get("/token").status_code == 405
    assert measured.http.get("/livez").status_code == 200
    grant, method = "client_credentials", "client_secret_basic"
    assert series(measured, "gatehouse_token_requests_total") == {
        (grant, method, "allowed", "", ""): 1,
        (grant, "client_secret_post", "allowed", "", ""): 1,
        (grant, method, "refused", "invalid_client", ""): 1,
        (grant, method, "refused", "invalid_scope", ""): 1,
        (OTHER, method, "refused", "unsupported_grant_type", ""): 1,
        ("", method, "refused", "invalid_request", ""): 1,
        ("", "", "refused", "invalid_request", ""): 1,
    }
    registry = measured.services.metrics.registry
    assert registry is not None
    counted = [
        registry.get_sample_value("gatehouse_token_request_duration_seconds_count", {"outcome": outcome})
        for outcome in ("allowed", "refused", "failed", "aborted")
    ]
    assert counted == [2, 5, 0, 0]


def test_an_outage_and_a_request_that_cannot_be_recorded_count_as_failed(measured: AuthServer) -> None:
    client, secret = measured.create_client()
    measured.take_database_away()
    assert measured.post_token(basic=(client.client_id, secret)).status_code == 503
    assert measured.post_token(b"").status_code == 503
    errors = {labels[2:4] for labels in series(measured, "gatehouse_token_requests_total")}
    assert errors == {("failed", "temporarily_unavailable")}


@pytest.mark.parametrize(
    ("credentials", "reason"),
    [
        ({}, AuthFailure.NONE_SENT),
        ({"basic": ("agent_unknown", "gths_x")}, AuthFailure.UNKNOWN_CLIENT),
        ({"headers": {"Authorization": "Bearer gths_0123456789abcdef"}}, AuthFailure.MALFORMED),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_failed_authentication_is_counted_by_its_reason(
    measured: AuthServer, credentials: dict[str, Any], reason: AuthFailure
) -> None:
    assert measured.post_token(**credentials).status_code == 401
    assert series(measured, "gatehouse_client_auth_failures_total") == {(reason,): 1}


def test_a_resource_that_fails_to_authenticate_is_counted_as_well(measured: AuthServer) -> None:
    headers = {"Authorization": basic_header("rc_unknown", "gths_x")}
    assert measured.http.post("/introspect", data={"token": "x"}, headers=headers).status_code == 401
    assert series(measured, "gatehouse_client_auth_failures_total") == {(AuthFailure.UNKNOWN_CLIENT,): 1}
    assert series(measured, "gatehouse_token_requests_total") == {}


@pytest.mark.parametrize("form", FORMS)
def test_requests_with_platform_tokens_are_counted_by_grant_and_reason(measured: AuthServer, form: str) -> None:
    job = WorkloadClient(measured, github(measured.clock))
    token = job.platform.token()
    job.accepted(form, token)
    job.refused(form, token, "platform token: it was used before")
    refused = {
        AuthFailure.UNTRUSTED_ISSUER: job.platform.token(iss="https://elsewhere.example.com"),
        AuthFailure.ASSERTION_SIGNATURE: job.platform.token(header={"kid": "another"}),
        AuthFailure.ASSERTION_CLAIMS: job.platform.token(aud="https://elsewhere.example.com"),
        AuthFailure.UNTRUSTED_WORKLOAD: job.platform.token(repository_id="1", sub="repo:acme/ops:pull_request"),
        AuthFailure.ASSERTION_MALFORMED: "a.b.c",
    }
    for each in refused.values():
        assert job.post(form, each).status_code in {400, 401}
    counted = {str(cause): 1.0 for cause in (*refused, AuthFailure.ASSERTION_REPLAYED)}
    failures = series(measured, "gatehouse_client_auth_failures_total")
    assert failures == {(cause,): number for cause, number in counted.items()}
    assert series(measured, "gatehouse_replay_rejections_total") == {(): 1}
    grant = JWT_BEARER if form == "grant" else "client_credentials"
    error = "invalid_grant" if form == "grant" else "invalid_client"
    assert series(measured, "gatehouse_token_requests_total") == {
        (grant, "workload_identity", "allowed", "", ""): 1,
        (grant, "workload_identity", "refused", error, ""): 5,
        (grant, "", "refused", error, ""): 1,
    }


def test_a_replayed_assertion_is_counted(measured: AuthServer) -> None:
    client = KeyClient(measured, KEY)
    assertion = client.assertion()
    assert client.post(assertion).status_code == 200
    assert series(measured, "gatehouse_replay_rejections_total") == {}
    assert client.post(assertion).status_code == 401
    assert series(measured, "gatehouse_replay_rejections_total") == {(): 1}
    assert series(measured, "gatehouse_client_auth_failures_total") == {(AuthFailure.ASSERTION_REPLAYED,): 1}


@pytest.mark.threat("T-160")
def test_a_client_is_named_only_if_it_is_listed_and_authenticated(authserver: AuthServer) -> None:
    (listed, secret), (other, other_secret) = authserver.create_client(), authserver.create_client()
    close_services(authserver.services)
    changes = {"metrics_bind": "127.0.0.1:9100", "metrics_clients": listed.client_id}
    authserver.services = create_services(authserver.settings.model_copy(update=changes), authserver.clock)
    authserver.http = http_client(build_app(authserver.services))
    authserver.post_token(basic=(listed.client_id, secret))
    authserver.post_token(basic=(listed.client_id, "gths_wrong"))
    authserver.post_token(basic=(other.client_id, other_secret))
    assert {labels[2:] for labels in series(authserver, "gatehouse_token_requests_total")} == {
        ("allowed", "", listed.client_id),
        ("refused", "invalid_client", ""),
        ("allowed", "", ""),
    }


def test_the_table_of_errors_has_every_code() -> None:
    assert set(ERRORS) == generate_reference.oauth_codes()


def test_every_reason_of_a_failed_authentication_is_raised_somewhere() -> None:
    folder = Path(next(iter(gatehouse.authserver.__path__)))
    raised = {
        node.attr
        for file in folder.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "AuthFailure"
    }
    assert raised == {reason.name for reason in AuthFailure}


def test_the_process_that_rotates_keys_reports_when_the_next_one_is_due(measured: AuthServer) -> None:
    name = "gatehouse_signing_key_rotation_timestamp_seconds"
    assert series(measured, name) == {}
    assert measured.services.maintenance.run_once()
    assert series(measured, name) == {(): measured.clock() + 30 * 86400}


def test_the_age_of_the_oldest_keys_of_a_trusted_issuer_is_reported(measured: AuthServer, clock: FakeClock) -> None:
    name, fetched = "gatehouse_issuer_keys_timestamp_seconds", KeyLocation(True, None, None, None)
    trust(measured, github(clock))
    measured.services.maintenance.run_once()
    assert series(measured, name) == {}, "given by an admin, not fetched"
    begin = clock()
    trust(measured, oidc(clock), location=fetched)
    clock.advance(1)
    trust(measured, kubernetes(clock), issuer="https://cluster.example.com", location=fetched)
    measured.services.maintenance.run_once()
    assert series(measured, name) == {(): begin}
    with measured.services.database.write() as session:
        set_issuer_disabled(session, measured.admin, "login", disabled=True)
    measured.services.maintenance.run_once()
    assert series(measured, name) == {(): begin + 1}


def test_the_next_rotation_is_that_of_the_next_key_once_there_is_one() -> None:
    policy = Policy(alg="ES256", period=1000)
    active = KeyLifecycle("a", "ES256", "active", published_at=100)
    waiting = KeyLifecycle("b", "ES256", "next", published_at=1100)
    assert next_rotation([active], policy) == 1100
    assert next_rotation([active, waiting], policy) == 1100 + policy.lead
    assert next_rotation([], policy) is None


def test_the_audit_writer_reports_its_writes(measured: AuthServer) -> None:
    measured.post_token()
    measured.audit()
    assert series(measured, "gatehouse_audit_written_timestamp_seconds") == {(): measured.clock()}
    assert series(measured, "gatehouse_db_pool_size") == {(): measured.settings.threads + 10}


def test_the_upkeep_reports_until_when_checkpoints_list_the_events(measured: AuthServer) -> None:
    measured.post_token()
    measured.audit()
    measured.services.audit_upkeep.run_once()
    assert series(measured, "gatehouse_audit_checkpoint_timestamp_seconds") == {(): measured.clock()}


def test_every_metric_is_listed_for_the_documentation(measured: AuthServer) -> None:
    registry = measured.services.metrics.registry
    assert registry is not None
    created = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    assert created == {metric.name for metric in METRICS}


def test_a_429_is_counted_by_its_limit_and_the_failure_by_its_reason(
    tmp_path: Path, authserver_template: Template, clock: FakeClock
) -> None:
    limits = {"workers": 1, "limit_authentication_failures": "1/minute"}
    server = AuthServer(tmp_path, authserver_template, clock, metrics_bind="127.0.0.1:9100", **limits)
    try:
        client, _ = server.create_client()
        statuses = [server.post_token(basic=(client.client_id, "gths_wrong")).status_code for _ in range(3)]
        assert statuses == [401, 429, 429]
        assert series(server, "gatehouse_rate_limited_total") == {("authentication_failures",): 2}
        assert series(server, "gatehouse_client_auth_failures_total") == {(AuthFailure.WRONG_SECRET,): 3}
        assert {labels[2:4] for labels in series(server, "gatehouse_token_requests_total")} == {
            ("refused", "invalid_client"),
            ("refused", "temporarily_unavailable"),
        }
    finally:
        server.close()
