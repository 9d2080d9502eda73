"""Runs commands of the authorization server in processes that end with SIGKILL at a chosen point.

This is a program: it reads one job per line, forks a process for each, and writes how the process ended. A point is a
database statement, a commit, the return of a connection to the pool, or a file that is opened, linked, renamed or
removed in the folder of the job.
"""

import json
import os
import signal
import sys
from dataclasses import replace
from typing import Any

from sqlalchemy import Engine, event
from sqlalchemy.pool import Pool

from gatehouse.authserver.app import create_services
from gatehouse.authserver.cli import main
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.settings import Settings


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


def run(job: dict[str, Any], report: int) -> None:
    os.environ.update(job["environment"])
    if job.get("migrations"):
        Database.schema = replace(Database.schema, migrations=job["migrations"])
    log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor in (1, 2):
        os.dup2(log, descriptor)
    points = Points(job["kill_at"], job["folder"], report)
    points.watch()
    if job["now"] is None:
        main(job["arguments"], standalone_mode=False)
    else:
        services = create_services(Settings(), lambda: job["now"])
        services.maintenance.run_once()
        services.audit.close()
        services.database.close()
    points.tell()


def fork(job: dict[str, Any]) -> dict[str, Any]:
    reading, writing = os.pipe()
    if (pid := os.fork()) == 0:
        code = 1
        try:
            run(job, writing)
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = pipe.read()
    _, status = os.waitpid(pid, 0)
    return {"code": os.waitstatus_to_exitcode(status), "passed": json.loads(told or b"null")}


if __name__ == "__main__":
    for line in sys.stdin:
        print(json.dumps(fork(json.loads(line))), flush=True)
