"""Runs commands of the authorization server in processes of their own, and kills them with SIGKILL at a chosen point.

This is also a program: it imports everything that a command needs, once. Then it reads one list of jobs per line, forks
a process for each job, and writes how the processes ended. A process that only forks has no thread, so that no lock is
held when it forks; a test process often has some.

A point is a database statement, a commit, the return of a connection to the pool, or a file that is opened, linked,
renamed or removed in the folder of the job.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from typing import Any

import click
import psycopg  # noqa: F401 - imported before the first fork
from alembic import command  # noqa: F401
from rich import console, table  # noqa: F401
from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from gatehouse.authserver.app import create_services
from gatehouse.authserver.cli import main
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.settings import Settings


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


class ForkedCommands:
    """Starts commands in processes of their own."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def run(self, job: Job) -> Ended:
        """Run a job until it ends."""
        return self.run_together(job)[0]

    def run_together(self, *jobs: Job) -> list[Ended]:
        """Run jobs at the same time until all of them have ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        print(json.dumps([asdict(job) for job in jobs]), file=self._process.stdin, flush=True)
        return [Ended(**ended) for ended in json.loads(self._process.stdout.readline())]


@contextmanager
def forked_commands() -> Iterator[ForkedCommands]:
    """Keep the process that forks until the block ends."""
    process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield ForkedCommands(process)
    finally:
        process.communicate()


class Points:
    """Counts the points of this process, and kills it at one of them."""

    def __init__(self, kill_at: int, folder: str, report: int) -> None:
        self._kill_at = kill_at
        self._folder = folder
        self._report = report
        self._writing = False
        self.passed: list[bool] = []
        """For each point, whether a transaction that writes was open."""

    def point(self) -> None:
        self.passed.append(self._writing)
        if len(self.passed) == self._kill_at:
            self.tell()
            os.kill(os.getpid(), signal.SIGKILL)

    def tell(self) -> None:
        os.write(self._report, json.dumps(self.passed).encode())

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


def _import_commands(group: click.Group) -> None:
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        if isinstance(found, click.Group):
            _import_commands(found)


def _run(job: Job, report: int, errors: int) -> int:
    """Do a job in this process, and return its exit code."""
    for name in [name for name in os.environ if name.startswith("AUTHSERVER_")]:
        del os.environ[name]
    os.environ.update(job.environment)
    os.chdir(job.folder)
    if job.migrations is not None:
        Database.schema = replace(Database.schema, migrations=job.migrations)
    os.dup2(os.open(job.output, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 1)
    os.dup2(errors, 2)
    if job.largest_file is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (job.largest_file, job.largest_file))
    points = Points(job.kill_at, job.folder, report)
    points.watch()
    code = 0
    if job.arguments:
        try:
            main(job.arguments, prog_name="authserver")
        except SystemExit as ended:
            code = ended.code if isinstance(ended.code, int) else ended.code is not None
    else:
        services = create_services(Settings(), lambda: job.now)
        services.maintenance.run_once()
        services.audit.close()
        services.database.close()
    # As Python does at exit: it fails if the output cannot be written.
    sys.stdout.flush()
    points.tell()
    return code


def _fork(job: Job) -> tuple[int, int, int]:
    """Start a process for a job. Return its identifier, and the pipes of its report and of its standard error."""
    report, report_end = os.pipe()
    errors, errors_end = os.pipe()
    if (pid := os.fork()) == 0:
        code = 120
        try:
            code = _run(job, report_end, errors_end)
        except BaseException:  # noqa: BLE001 - as Python ends any program
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(report_end)
    os.close(errors_end)
    return pid, report, errors


def _wait(pid: int, report: int, errors: int) -> dict[str, Any]:
    with os.fdopen(report, "rb") as passed, os.fdopen(errors, "rb") as written:
        points, text = passed.read(), written.read()
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    return {"code": code, "passed": json.loads(points or b"[]"), "errors": text.decode(errors="replace")}


def _serve() -> None:
    _import_commands(main)
    for line in sys.stdin:
        started = [_fork(Job(**job)) for job in json.loads(line)]
        print(json.dumps([_wait(*process) for process in started]), flush=True)


if __name__ == "__main__":
    _serve()
