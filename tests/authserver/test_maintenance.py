"""Background maintenance: one process does the work, and another one takes over if it stops."""

import threading
from collections.abc import Iterator

import pytest
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from support.audit import verification
from support.authserver import AuthServer
from support.clock import FakeClock
from support.http_client import lifespan

from gatehouse.authserver.app import build_app, create_services
from gatehouse.authserver.db.models import SigningKeyRow, SpentAssertionRow, audit_tables
from gatehouse.authserver.maintenance import LEASE, Maintenance
from gatehouse.shared.service.audit.keys import AuditKeys

pytestmark = pytest.mark.both_databases

DAY = 86400


class Worker:
    """A maintenance thread that counts how often its task ran."""

    def __init__(self, server: AuthServer) -> None:
        self.done = 0
        self.maintenance = Maintenance(server.services.database, server.clock, {"count": self.count}, interval=0.001)

    def count(self) -> None:
        self.done += 1


@pytest.fixture
def workers(authserver: AuthServer) -> Iterator[list[Worker]]:
    started = [Worker(authserver) for _ in range(2)]
    yield started
    for worker in started:
        worker.maintenance.stop()


def turn(workers: list[Worker]) -> list[bool]:
    return [worker.maintenance.run_once() for worker in workers]


def test_one_process_does_the_work(workers: list[Worker], clock: FakeClock) -> None:
    for _ in range(5):
        assert turn(workers) == [True, False]
        clock.advance(10)
    assert [worker.done for worker in workers] == [5, 0]


def test_a_leader_that_stops_renewing_its_lease_is_replaced(workers: list[Worker], clock: FakeClock) -> None:
    first, second = workers
    assert turn(workers) == [True, False]
    clock.advance(LEASE - 1)
    assert not second.maintenance.run_once()
    clock.advance(1)
    assert second.maintenance.run_once()
    assert not first.maintenance.run_once()


def test_one_of_two_processes_acquires_a_free_lease(authserver: AuthServer, clock: FakeClock) -> None:
    together = threading.Barrier(4)
    workers = [Worker(authserver) for _ in range(4)]
    outcomes: list[bool] = []

    def run(worker: Worker) -> None:
        together.wait()
        outcomes.append(worker.maintenance.run_once())

    for _ in range(2):
        threads = [threading.Thread(target=run, args=[worker]) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(outcomes) == 1
        outcomes.clear()
        clock.advance(LEASE)


def test_a_lease_written_by_a_wrong_clock_is_replaced(workers: list[Worker], clock: FakeClock) -> None:
    first, second = workers
    clock.advance(400 * DAY)
    assert first.maintenance.run_once()
    clock.advance(-400 * DAY)
    assert second.maintenance.run_once()


def test_a_process_that_stops_releases_its_lease(workers: list[Worker]) -> None:
    first, second = workers
    first.maintenance.start()
    while not first.done:
        threading.Event().wait(0.001)
    first.maintenance.stop()
    assert second.maintenance.run_once()


def test_a_process_that_stops_keeps_the_lease_of_another(authserver: AuthServer, workers: list[Worker]) -> None:
    first, second = workers
    assert turn(workers) == [True, False]
    looked = threading.Event()
    bystander = Maintenance(authserver.services.database, authserver.clock, {}, own={"look": looked.set})
    bystander.start()
    assert looked.wait(60)
    bystander.stop()
    assert (first.maintenance.run_once(), second.maintenance.run_once()) == (True, False)


def test_a_failed_task_is_retried_and_does_not_block_others(
    authserver: AuthServer, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes = iter([SQLAlchemyError(), SQLAlchemyError(), None, None])
    done: list[str] = []

    def fail() -> None:
        error = next(outcomes)
        if error is not None:
            raise error
        done.append("first")

    services = authserver.services
    tasks = {"first": fail, "second": lambda: done.append("second")}
    maintenance = Maintenance(services.database, authserver.clock, tasks)
    with caplog.at_level("INFO"):
        for _ in range(4):
            assert maintenance.run_once()
    assert done == ["second", "second", "first", "second", "first", "second"]
    messages = [record.getMessage() for record in caplog.records if "maintenance" in record.name]
    assert messages == [
        "maintenance: first failed and will be retried: SQLAlchemyError",
        "maintenance: first works again",
    ]


def test_every_process_runs_its_own_tasks(authserver: AuthServer) -> None:
    done: list[int] = []
    several = [
        Maintenance(authserver.services.database, authserver.clock, {}, own={"own": lambda n=number: done.append(n)})
        for number in range(2)
    ]
    assert [maintenance.run_once() for maintenance in several] == [True, False]
    assert done == [0, 1]


def test_the_loop_continues_during_a_database_outage(authserver: AuthServer, workers: list[Worker]) -> None:
    assert turn(workers) == [True, False]
    authserver.take_database_away()
    assert turn(workers) == [False, False]


def test_a_server_rotates_keys_and_prunes_spent_assertions(authserver: AuthServer, clock: FakeClock) -> None:
    services = authserver.services
    with services.database.write() as session:
        session.add(SpentAssertionRow(purpose="p", client_id="c", jti_digest=b"a" * 32, expires_at=int(clock()) - 1))
        session.add(SpentAssertionRow(purpose="p", client_id="c", jti_digest=b"b" * 32, expires_at=int(clock()) + DAY))
    clock.advance(30 * DAY - 2 * DAY)
    assert services.maintenance.run_once()
    clock.advance(2 * DAY)
    assert services.maintenance.run_once()
    with services.database.read() as session:
        assert session.scalars(select(SigningKeyRow.state).order_by(SigningKeyRow.state)).all() == ["active", "next"]
        assert session.scalars(select(SpentAssertionRow)).all() == []


def test_the_threads_start_and_end_with_the_server(authserver: AuthServer, clock: FakeClock) -> None:
    def running() -> set[str]:
        return {thread.name for thread in threading.enumerate()} & {"maintenance", "audit-upkeep"}

    app = build_app(create_services(authserver.settings, clock))
    assert running() == set()
    with lifespan(app):
        assert running() == {"maintenance", "audit-upkeep"}
    assert running() == set()


def test_a_server_that_stops_writes_a_checkpoint_of_its_audit_log(authserver: AuthServer, clock: FakeClock) -> None:
    authserver.create_client()
    with lifespan(build_app(create_services(authserver.settings, clock))):
        pass
    keys = AuditKeys.read(authserver.settings.audit_keys)
    found = verification(authserver.services.database.engine, audit_tables, keys)
    assert (found.checkpoints, found.finding) == (1, None)
