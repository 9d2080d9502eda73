"""Stacks of the journeys: the servers are real processes, and what only prepares them is done in the test's process."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from click.testing import CliRunner
from local_stack import CommandRefused, LocalStack

from gatehouse.authserver.cli import main as authserver
from gatehouse.resourceserver.cli import main as resourceserver
from support.logs import logging_put_back

_COMMANDS = {"authserver": authserver, "resourceserver": resourceserver}

_SETTINGS = {"RESOURCESERVER_STATUS_POLL_INTERVAL": "1"}
"""A journey that revokes something waits for a poll."""


class PreparedStack(LocalStack):
    """A stack whose commands run in this process, because a process takes a second to start."""

    def run(self, *arguments: str) -> str:
        """Run a command of either server, and return what it printed. Raises CommandRefused."""
        program, *rest = arguments
        files = {
            "AUTHSERVER_DATABASE_URL": f"sqlite:///{self.folder}/var/authserver.db",
            "AUTHSERVER_KEYS_DIR": str(self.folder / "keys"),
            "RESOURCESERVER_DATABASE_URL": f"sqlite:///{self.folder}/var/resourceserver.db",
        }
        with logging_put_back():
            done = CliRunner().invoke(_COMMANDS[program], rest, env=files | self.environment)
        if done.exit_code != 0:
            raise CommandRefused(arguments, done.exit_code, done.stderr.strip())
        return done.stdout

    def run_process(self, *arguments: str) -> str:
        """Run a command in a process, as an admin does. Raises CommandRefused."""
        return super().run(*arguments)


@dataclass
class StackTemplate:
    """An initialized stack, copied for every journey that stops its servers. The copies use the same ports."""

    stack: PreparedStack

    def copy(self, folder: Path) -> PreparedStack:
        shutil.copytree(self.stack.folder, folder)
        ports = self.stack.authserver_port, self.stack.resourceserver_port
        return PreparedStack(folder, *ports, settings=self.stack.settings)


def initialized(folder: Path) -> PreparedStack:
    """Return a stack that can be started."""
    stack = PreparedStack(folder, settings=_SETTINGS)
    stack.init()
    return stack


@contextmanager
def running(folder: Path) -> Iterator[PreparedStack]:
    """Run a stack until the block ends, and check that neither server logged a failure."""
    stack = initialized(folder)
    try:
        stack.start_all()
        yield stack
    finally:
        stack.stop()
    for server in ("authserver", "resourceserver"):
        log = stack.log(server)
        assert "Traceback" not in log, log
        assert "status=500" not in log, log
