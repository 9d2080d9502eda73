"""Runs commands of the authorization server as processes, and kills them with SIGKILL at a chosen point.

A point is a database statement, a commit, the return of a connection to the pool, or a file that is opened, linked,
renamed or removed in the folder of the job.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from gatehouse.authserver.app import create_services
from gatehouse.authserver.cli import main as authserver
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.settings import Settings
from support.forks import WITH_KILL_POINTS, ForkedProcess, fork_server

_REPORT = 3
"""The file descriptor that a process writes its points to."""


@dataclass(frozen=True)
class Job:
    """One command, or one round of maintenance if there are no arguments."""

    arguments: Sequence[str]
    environment: Mapping[str, str]
    folder: str
    """The working directory."""
    output: str
    """The file that standard output is appended to."""
    now: int | None = None
    """The time at which maintenance runs."""
    migrations: str | None = None
    """A folder of migrations to use in place of the installed ones."""
    kill_at: int = 0
    """The number of the point at which the process is killed, from 1; 0: never."""
    largest_file: int | None = None
    """The size in bytes that no file may exceed, as `ulimit -f` sets it."""


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    """The exit code, or the number of the signal, negated."""
    passed: Sequence[bool]
    """For each point that it passed, whether a transaction that writes was open."""
    errors: str
    """What it wrote to standard error."""


def run(job: Job) -> Ended:
    """Run a job until it ends."""
    return run_together(job)[0]


def run_together(*jobs: Job) -> list[Ended]:
    """Run jobs at the same time until all of them have ended."""
    return [_wait(*started) for started in [_start(job) for job in jobs]]


def _start(job: Job) -> tuple[ForkedProcess, int, int]:
    """Start a process. Return it, and the pipes of its standard error and of its report."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AUTHSERVER_")}
    output = os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    (errors, errors_end), (report, report_end) = os.pipe(), os.pipe()
    try:
        process = fork_server().start(
            [WITH_KILL_POINTS, json.dumps(asdict(job))],
            Path(job.folder),
            {**inherited, **job.environment},
            *(output, errors_end, report_end),
        )
    finally:
        for file in (output, errors_end, report_end):
            os.close(file)
    return process, errors, report


def _wait(process: ForkedProcess, errors: int, report: int) -> Ended:
    with os.fdopen(errors, encoding="utf-8", errors="replace") as written, os.fdopen(report, "rb") as passed:
        text, points = written.read(), passed.read()
    return Ended(process.wait(), [point == ord("w") for point in points], text)


class _Points:
    """Counts the points of this process, and kills it at one of them."""

    def __init__(self, kill_at: int, folder: str) -> None:
        self._kill_at = kill_at
        self._folder = folder
        self._writing = False
        self._passed = ""

    def point(self) -> None:
        self._passed += "w" if self._writing else "r"
        if len(self._passed) == self._kill_at:
            self.report()
            os.kill(os.getpid(), signal.SIGKILL)

    def report(self) -> None:
        os.write(_REPORT, self._passed.encode())

    def watch(self) -> None:
        event.listen(Engine, "before_cursor_execute", lambda *_: self.point())
        event.listen(Engine, "after_cursor_execute", lambda *_: self.point())
        event.listen(Engine, "begin", self._begin)
        event.listen(Engine, "commit", self._commit)
        event.listen(Pool, "checkin", lambda *_: self.point())
        sys.addaudithook(self._audited)

    def _begin(self, connection: Any) -> None:
        self._writing = not connection.get_execution_options().get("gatehouse_read_only", False)
        self.point()

    def _commit(self, _: Any) -> None:
        self.point()
        self._writing = False

    def _audited(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name in {"open", "os.link", "os.rename", "os.remove"} and str(arguments[0]).startswith(self._folder):
            self.point()


def main() -> None:
    """Do the job of the first argument in this process, and end the process."""
    code = 120
    try:
        code = _do(Job(**json.loads(sys.argv[1])))
    except BaseException:  # noqa: BLE001 - as Python ends any program
        traceback.print_exc()
    finally:
        # Tearing down the modules would take longer than the command.
        os._exit(code)


def _do(job: Job) -> int:
    """Do a job, and return its exit code."""
    if job.migrations is not None:
        Database.schema = replace(Database.schema, migrations=job.migrations)
    if job.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.largest_file, job.largest_file))
    points = _Points(job.kill_at, job.folder)
    points.watch()
    code = 0
    if job.arguments:
        try:
            authserver(job.arguments, prog_name="authserver")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else ended.code is not None
    else:
        services = create_services(Settings(), lambda: job.now)
        services.maintenance.run_once()
        services.audit.close()
        services.database.close()
    # As Python does at exit: it fails if the output cannot be written.
    sys.stdout.flush()
    points.report()
    return code
