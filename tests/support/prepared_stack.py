"""Stacks of the journeys: real processes of both programs, started quickly."""

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_stack import LocalStack, Process

from support.forks import fork_server
from support.limits import VARIABLES

_SETTINGS = {**VARIABLES, "RESOURCESERVER_STATUS_POLL_INTERVAL": "1"}
"""A journey that revokes something waits for a poll."""


class PreparedStack(LocalStack):
    """A stack whose processes are forked from one that has imported both programs."""

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        return fork_server().run(arguments, self.folder, self.environment)

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        return fork_server().start(arguments, self.folder, self.environment, log, log)


@dataclass
class StackTemplate:
    """An initialized stack, copied for every journey that stops its servers. The copies use the same ports."""

    stack: PreparedStack

    def copy(self, folder: Path) -> PreparedStack:
        shutil.copytree(self.stack.folder, folder)
        ports = self.stack.authserver_port, self.stack.resourceserver_port
        return PreparedStack(folder, *ports, settings=self.stack.settings)


def initialized(folder: Path, **settings: str) -> PreparedStack:
    """Return a stack that can be started."""
    stack = PreparedStack(folder, settings={**_SETTINGS, **settings})
    stack.init()
    return stack


@contextmanager
def running(folder: Path, **settings: str) -> Iterator[PreparedStack]:
    """Run a stack until the block ends, and check that neither server logged a failure."""
    stack = initialized(folder, **settings)
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop()
    for server in ("authserver", "resourceserver"):
        log = stack.log(server)
        assert "Traceback" not in log, log
        assert "status=500" not in log, log
