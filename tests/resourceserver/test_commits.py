"""A commit whose answer is lost: the caller learns that the outcome is unknown, and how to repeat the call."""

import asyncio
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import psycopg
import pytest
from sqlalchemy import text
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.exc import OperationalError, SQLAlchemyError
from support.databases import Template
from support.resourceserver import ResourceServer, settings_in
from support.streaming import streamed, tool_request

from gatehouse.resourceserver.db.request_database import CommitUnknown, RequestDatabase

pytestmark = [pytest.mark.anyio, pytest.mark.both_ways]

KEY = "key-00001"


def sqlite_error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("from the test")
    error.sqlite_errorcode = code
    return error


LOST: dict[str, Callable[[], Exception]] = {
    "sqlite": lambda: sqlite_error(sqlite3.SQLITE_IOERR_FSYNC),
    "postgresql": lambda: psycopg.OperationalError("the connection was lost"),
}
REFUSED: dict[str, Callable[[], Exception]] = {
    "sqlite": lambda: sqlite_error(sqlite3.SQLITE_BUSY),
    "postgresql": psycopg.errors.SerializationFailure,
}


def do_nothing() -> None:
    """Do nothing when a commit is reached."""


class Commits:
    """The next commit of a request, which a test lets fail. The audit writer's are not affected."""

    def __init__(self) -> None:
        self.error: BaseException | None = None
        self.accepted = False
        self.reached: Callable[[], None] = do_nothing

    def fail(self, error: BaseException, *, accepted: bool) -> None:
        """Let the next commit fail, after the database has accepted it or before."""
        self.error, self.accepted = error, accepted


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> Commits:
    commits, commit = Commits(), DefaultDialect.do_commit

    def do_commit(dialect: DefaultDialect, connection: Any) -> None:
        of_a_request = threading.current_thread().name.startswith("call")
        error = commits.error if of_a_request else None
        if of_a_request:
            commits.reached()
        if error is None or commits.accepted:
            commit(dialect, connection)
        if error is not None:
            commits.error = None
            raise error

    monkeypatch.setattr(DefaultDialect, "do_commit", do_commit)
    return commits


@pytest.fixture
def token(resourceserver: ResourceServer) -> str:
    return resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())


def environments(server: ResourceServer) -> list[str]:
    with server.admin_database.read() as session:
        return list(session.scalars(text("SELECT name FROM environment ORDER BY name")))


async def outcomes(server: ResourceServer, token: str) -> list[tuple[str, Any]]:
    # The refusal is on disk after everything that was recorded before.
    await server.call("no_such_tool", token)
    events = server.audit(action="tool.call")
    return [(event["outcome"], event["reason"]) for event in events if event["object"] != "no_such_tool"]


async def failed_creation(
    server: ResourceServer, token: str, commits: Commits, error: Exception, *, accepted: bool, **more: str
) -> str:
    """Let the commit of a call that creates `staging` fail, and return what the caller is told."""
    commits.fail(error, accepted=accepted)
    return await server.failure("create_environment", token, name="staging", **more)


UNKNOWN = ("failed", "the database did not report whether the transaction was committed")


@pytest.mark.both_databases
@pytest.mark.parametrize("accepted", [True, False])
async def test_a_lost_commit_can_be_repeated_with_its_key(
    resourceserver: ResourceServer, token: str, commits: Commits, backend: str, accepted: bool
) -> None:
    arguments = {"name": "staging", "idempotency_key": KEY}
    failure = await failed_creation(
        resourceserver, token, commits, LOST[backend](), accepted=accepted, idempotency_key=KEY
    )
    assert failure.startswith("The outcome is unknown")
    assert "Repeat the call with the same idempotency_key" in failure
    assert "Nothing was changed" not in failure
    assert environments(resourceserver) == (["staging"] if accepted else [])
    # Only one outcome: the event of the change is committed with it.
    assert await outcomes(resourceserver, token) == [("allowed", None) if accepted else UNKNOWN]
    assert (await resourceserver.result("create_environment", token, **arguments))["name"] == "staging"
    assert environments(resourceserver) == ["staging"]


@pytest.mark.both_databases
async def test_a_lost_commit_without_a_key_is_to_be_read_first(
    resourceserver: ResourceServer, token: str, commits: Commits, backend: str
) -> None:
    failure = await failed_creation(resourceserver, token, commits, LOST[backend](), accepted=True)
    assert failure.startswith("The outcome is unknown")
    assert "Read the current state before you repeat the call. With an idempotency_key" in failure
    assert environments(resourceserver) == ["staging"]


@pytest.mark.both_databases
@pytest.mark.parametrize("lost", [False, True])
async def test_a_call_that_is_cancelled_during_its_commit_has_one_outcome(
    resourceserver: ResourceServer, token: str, commits: Commits, backend: str, lost: bool
) -> None:
    if lost:
        commits.fail(LOST[backend](), accepted=True)
    reached, cancelled = threading.Event(), threading.Event()

    def wait() -> None:
        reached.set()
        cancelled.wait()

    commits.reached = wait
    body, headers = tool_request("2026-07-28", "create_environment", {"name": "staging"})
    task = asyncio.create_task(resourceserver.post(body, token, headers))
    await anyio.to_thread.run_sync(reached.wait)
    task.cancel()
    await anyio.wait_all_tasks_blocked()
    cancelled.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert environments(resourceserver) == ["staging"]
    assert await outcomes(resourceserver, token) == [("allowed", None)]


@pytest.mark.both_databases
async def test_a_refused_commit_has_changed_nothing(
    resourceserver: ResourceServer, token: str, commits: Commits, backend: str
) -> None:
    failure = await failed_creation(resourceserver, token, commits, REFUSED[backend](), accepted=False)
    assert failure.startswith("Nothing was changed.")
    assert environments(resourceserver) == []
    ((outcome, reason),) = await outcomes(resourceserver, token)
    assert (outcome, reason.partition(":")[0]) == ("failed", "database error")


@pytest.mark.both_databases
async def test_a_lost_commit_of_a_streaming_tool_is_reported(
    resourceserver: ResourceServer, token: str, commits: Commits, backend: str
) -> None:
    environment = await resourceserver.result("create_environment", token, name="staging")
    arguments = {
        "environment_id": environment["environment_id"],
        "organizations": [{"name": "Customer", "external_id": "crm-1"}],
    }
    commits.fail(LOST[backend](), accepted=True)
    failure = await resourceserver.failure("import_organizations", token, **arguments)
    assert failure.startswith("The outcome is unknown")
    assert "Read the current state" in failure
    assert (await outcomes(resourceserver, token))[-1] == UNKNOWN
    body, headers = tool_request("2026-07-28", "import_organizations", arguments, "p-1")
    async with streamed(resourceserver.app, body, headers, token) as stream:
        *_, last = [event async for event in stream.events()]
    assert last["result"]["structuredContent"]["organizations"][0]["status"] == "exists"


async def test_an_unknown_outcome_is_reported_while_the_database_is_away(
    resourceserver: ResourceServer, token: str, commits: Commits, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(_: object) -> None:
        raise OperationalError("SELECT", None, sqlite3.OperationalError())

    monkeypatch.setattr(resourceserver.services.database, "run_read", away)
    commits.fail(LOST["sqlite"](), accepted=False)
    assert (await resourceserver.failure("create_environment", token, name="a")).startswith("The outcome is unknown")
    assert await outcomes(resourceserver, token) == [UNKNOWN]


def of_postgresql(error: psycopg.Error) -> OperationalError:
    return OperationalError("COMMIT", None, error)


@pytest.mark.parametrize(
    ("error", "unknown"),
    [
        (sqlite_error(sqlite3.SQLITE_BUSY_SNAPSHOT), False),
        (sqlite_error(sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY), False),
        (sqlite_error(sqlite3.SQLITE_FULL), True),
        (sqlite3.OperationalError("without a code"), True),
        (of_postgresql(psycopg.errors.UniqueViolation()), False),
        (of_postgresql(psycopg.errors.DeadlockDetected()), False),
        (of_postgresql(psycopg.errors.AdminShutdown()), True),
        (of_postgresql(psycopg.errors.ConnectionFailure()), True),
        (of_postgresql(psycopg.errors.StatementCompletionUnknown()), True),
        (of_postgresql(psycopg.OperationalError()), True),
        (RuntimeError(), True),
    ],
    ids=lambda value: type(getattr(value, "orig", value)).__name__,
)
async def test_only_an_answer_of_the_database_proves_that_nothing_was_changed(
    tmp_path: Path, resourceserver_template: Template, commits: Commits, error: Any, unknown: bool
) -> None:
    settings = settings_in(tmp_path, database_url=resourceserver_template.install(tmp_path))
    database = RequestDatabase(settings.database)
    commits.fail(error, accepted=False)
    with pytest.raises(CommitUnknown if unknown else SQLAlchemyError):
        await database.run_write(lambda session: session.execute(text("SELECT 1")))
    database.close()
