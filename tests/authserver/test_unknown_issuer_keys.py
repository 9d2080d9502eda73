"""Tokens whose key is not known yet: what they cause to be fetched, and what waits for that."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event
from support.authserver import AuthServer, basic_header, token_form
from support.clock import FakeClock
from support.databases import Template
from support.http_client import http_client
from support.issuers import LOOK_FOR_ISSUERS
from support.key_sets import OTHER_KEY
from support.platforms import GITHUB_ISSUER, github
from support.waiting import wait_until
from support.workloads import DISCOVERY, FORMS, WorkloadClient

from gatehouse.authserver.app import build_app
from gatehouse.authserver.clients.assertions import ASSERTION_TYPE
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.workloads.issuer_keys import MAX_AGE, REFETCH_INTERVAL
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.service.cache import MAX_AGE as CACHE_AGE
from gatehouse.shared.service.deadline import WAIT_LIMIT
from gatehouse.shared.service.fetch import FetchFailed

NO_KEYS = "platform token: no key of the issuer is known, or the key set is too old"
FAILED = "the last fetch of the keys failed {} ago: no connection"


class Publisher:
    """The key set of GitHub at its address, while it is up."""

    def __init__(self, clock: FakeClock) -> None:
        self.platform = github(clock)
        self.is_up = True
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.fetches: list[tuple[str, KeyLocation]] = []

    def fetch(self, issuer: str, location: KeyLocation) -> bytes:
        self.fetches.append((issuer, location))
        self.may_answer.wait()
        if not self.is_up:
            raise FetchFailed("no connection")
        return self.platform.jwks()


@pytest.fixture
def publisher(clock: FakeClock) -> Publisher:
    return Publisher(clock)


@pytest.fixture
def server(
    tmp_path: Path, authserver_template: Template, clock: FakeClock, publisher: Publisher
) -> Iterator[AuthServer]:
    """A server that fetches the keys of issuers from the publisher."""
    fetching = AuthServer(tmp_path / "fetching", authserver_template, clock, fetch_issuer_keys=publisher.fetch)
    with closing(fetching):
        yield fetching


@pytest.fixture
def job(server: AuthServer, publisher: Publisher) -> WorkloadClient:
    """A job of GitHub Actions. The keys of GitHub are found by discovery, and are not known yet."""
    return WorkloadClient(server, publisher.platform, location=DISCOVERY, jwks=None)


@pytest.mark.both_databases
@pytest.mark.parametrize("form", FORMS)
def test_keys_are_fetched_for_the_first_token_of_an_issuer(
    job: WorkloadClient, publisher: Publisher, form: str
) -> None:
    job.accepted(form)
    job.accepted(form)
    assert publisher.fetches == [(GITHUB_ISSUER, DISCOVERY)]


def test_a_token_that_no_new_key_could_verify_causes_no_fetch(
    job: WorkloadClient, publisher: Publisher, clock: FakeClock
) -> None:
    job.accepted("grant")
    clock.advance(REFETCH_INTERVAL)
    refused = {
        "the issuer may not use the algorithm ES256": job.platform.token(key=OTHER_KEY),
        "no trusted issuer has the iss https://elsewhere.example.com": job.platform.token(
            iss="https://elsewhere.example.com", header={"kid": "unknown"}
        ),
        "aud is elsewhere, not https://as.example.com alone": job.platform.token(aud="elsewhere"),
    }
    for reason, token in refused.items():
        job.refused("grant", token, f"platform token: {reason}")
    assert len(publisher.fetches) == 1


def test_keys_that_an_admin_gave_are_never_fetched(server: AuthServer, publisher: Publisher, clock: FakeClock) -> None:
    job = WorkloadClient(server, publisher.platform)
    job.accepted("grant")
    publisher.platform.rotate()
    clock.advance(2 * MAX_AGE)
    unknown = f"platform token: the issuer has no key with the kid {job.platform.key.kid} for RS256"
    row = job.refused("grant", job.platform.token(), unknown)
    assert row["detail"]["remediation"] == "authserver issuer update github --jwks-file FILE"
    job.accepted("grant", job.platform.token(key=job.platform.keys[1]))
    assert publisher.fetches == []


def test_an_issuer_that_never_answered_has_no_keys(job: WorkloadClient, publisher: Publisher) -> None:
    publisher.is_up = False
    for form in FORMS:
        row = job.refused(form, job.platform.token(), f"{NO_KEYS}; github: {FAILED.format('0 s')}")
        assert row["detail"]["remediation"] == "authserver issuer show github"
    assert len(publisher.fetches) == 1


@pytest.mark.parametrize("form", FORMS)
def test_a_refusal_for_a_new_key_names_the_last_failure(
    job: WorkloadClient, publisher: Publisher, clock: FakeClock, form: str
) -> None:
    """Its keys are young enough to be used, so nothing else says that they are not those of today."""
    job.accepted(form)
    publisher.is_up = False
    publisher.platform.rotate()
    clock.advance(REFETCH_INTERVAL)
    reason = f"platform token: the issuer has no key with the kid {job.platform.key.kid} for RS256"
    for age in ("0 s", "30 s"):
        job.refused(form, job.platform.token(), f"{reason}; github: {FAILED.format(age)}")
        clock.advance(30)


@pytest.mark.threat("T-208")
@pytest.mark.parametrize("form", FORMS)
def test_a_request_that_waited_too_long_for_keys_is_recorded_and_counted(
    tmp_path: Path,
    authserver_template: Template,
    clock: FakeClock,
    publisher: Publisher,
    monkeypatch: pytest.MonkeyPatch,
    form: str,
) -> None:
    """Otherwise, requests with an invented `kid` would leave no trace while a platform does not answer, be without a
    limit, and look like an outage of the database.
    """
    limits = {"limit_authentication_failures": "2/minute"}
    limited = AuthServer(tmp_path, authserver_template, clock, fetch_issuer_keys=publisher.fetch, **limits)
    with closing(limited), monkeypatch.context() as patch:
        job = WorkloadClient(limited, publisher.platform, location=DISCOVERY, jwks=None)
        patch.setattr("gatehouse.authserver.workloads.authentication.RESERVE", WAIT_LIMIT)
        publisher.may_answer.clear()
        responses = [job.post(form, job.platform.token()) for _ in range(3)]
        publisher.may_answer.set()
        assert (responses[0].status_code, responses[-1].status_code) == (503, 429)
        assert (responses[0].json["error"], responses[0].headers["retry-after"]) == ("temporarily_unavailable", "2")
        [row] = limited.audit(request_id=responses[0].json["request_id"])
        reason = f"platform token: the keys of {job.issuer.name} are being fetched"
        assert (row["outcome"], row["reason"]) == ("failed", reason)
        assert row["detail"]["external_issuer"] == job.platform.issuer
        patch.undo()
        job.accepted(form)


@pytest.mark.parametrize("form", FORMS)
def test_a_server_that_stops_fetches_no_keys_and_asks_to_try_again(
    job: WorkloadClient,
    server: AuthServer,
    publisher: Publisher,
    clock: FakeClock,
    caplog: pytest.LogCaptureFixture,
    form: str,
) -> None:
    """Its connections can deliver requests until they are closed, and nothing of them is at fault."""
    job.accepted(form)
    publisher.platform.rotate()
    clock.advance(REFETCH_INTERVAL)
    server.services.key_refresher.close()
    response = job.post(form, job.platform.token())
    assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")
    assert len(publisher.fetches) == 1
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


class CountingThreads(ThreadPoolExecutor):
    """One thread for requests, and how many calls it was given."""

    def __init__(self) -> None:
        super().__init__(1)
        self.calls = 0

    def submit(self, *arguments: Any, **keywords: Any) -> Any:
        self.calls += 1
        return super().submit(*arguments, **keywords)


@contextmanager
def reading_issuers_blocked(database: Database) -> Iterator[tuple[threading.Event, threading.Event]]:
    """Let statements that read trusted issuers wait.

    Yield an event that the first of them sets, and one that ends the wait. It must be set before the block ends.
    """
    is_read, may_read = threading.Event(), threading.Event()

    def wait(_connection: Any, _cursor: Any, executed: str, *_: Any) -> None:
        if executed.startswith(LOOK_FOR_ISSUERS):
            is_read.set()
            may_read.wait()

    event.listen(database.engine, "before_cursor_execute", wait)
    try:
        yield is_read, may_read
    finally:
        event.remove(database.engine, "before_cursor_execute", wait)


@pytest.mark.threat("T-208")
def test_revocations_that_need_new_keys_hold_no_thread_of_requests(
    job: WorkloadClient, server: AuthServer, publisher: Publisher, clock: FakeClock
) -> None:
    """Anybody can send one with an invented `kid`. While the platform does not answer, a few of them would otherwise
    stop the requests of all clients.
    """
    other, secret = server.create_client()
    header = {"Authorization": basic_header(other.client_id, secret)}
    form = {"token": "x", "client_assertion_type": ASSERTION_TYPE}
    with ThreadPoolExecutor(1) as threads, ThreadPoolExecutor(2) as senders:
        http = http_client(build_app(replace(server.services, threads=threads)))
        known = {**form, "client_assertion": job.platform.token()}
        job.accepted("grant")
        assert http.post("/revoke", data=known).status_code == 200
        clock.advance(REFETCH_INTERVAL)
        publisher.platform.rotate()
        publisher.may_answer.clear()
        new = {**form, "client_assertion": job.platform.token()}
        revocation = senders.submit(http.post, "/revoke", data=new)
        wait_until(lambda: len(publisher.fetches) == 2)
        token = senders.submit(http.post, "/token", data=token_form(), headers=header)
        statuses = token.result().status_code, revocation.result().status_code
        publisher.may_answer.set()
        assert statuses == (200, 401)
        # The fetch goes on, and a later request finds the new key.
        job.accepted("grant")
        assert http.post("/revoke", data={**form, "client_assertion": job.platform.token()}).status_code == 200


def test_a_revocation_by_a_workload_waits_for_no_thread_of_requests(
    job: WorkloadClient, server: AuthServer, clock: FakeClock
) -> None:
    """All threads of requests may be in such a revocation. The client must then not wait to be loaded by one of them,
    in a group with the clients of other requests.
    """
    other, secret = server.create_client()
    job.accepted("grant")
    clock.advance(CACHE_AGE)
    with CountingThreads() as threads, ThreadPoolExecutor(2) as senders:
        http = http_client(build_app(replace(server.services, threads=threads)))
        # The keys of the server are in memory.
        assert (
            http.post("/token", data=token_form(), headers={"Authorization": basic_header("a", "b")}).status_code == 401
        )
        form = {"token": "x", "client_assertion_type": ASSERTION_TYPE, "client_assertion": job.platform.token()}
        with reading_issuers_blocked(server.services.database) as (is_read, may_read):
            revocation = senders.submit(http.post, "/revoke", data=form)
            wait_until(is_read.is_set)
            known = threads.calls
            header = {"Authorization": basic_header(other.client_id, secret)}
            token = senders.submit(http.post, "/token", data=token_form(), headers=header)
            wait_until(lambda: threads.calls > known)
            may_read.set()
            assert (revocation.result().status_code, token.result().status_code) == (200, 200)
