"""Runs both programs in processes that are forked from one which has imported them.

To import a server takes a second or two of CPU, and the journeys start about 200 processes. The processes differ from
those of an admin in nothing else: they have the same entry points, arguments, files, environment and signals.

This module is also the program that forks. It reads one job from each connection, answers with the process id, and
with the exit code at the end. If a client goes away, the program that it started gets SIGTERM.
"""

import atexit
import functools
import gc
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

PROGRAMS = ("authserver", "resourceserver")

WITH_KILL_POINTS = "kill_points"
"""In place of a program: a job of `support.kill_points`."""


class ForkedProcess:
    """A running program, with the part of the interface of `subprocess.Popen` that the tests use."""

    def __init__(self, address: str, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], *files: int) -> None:
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address)
        job = {"arguments": list(arguments), "cwd": str(cwd), "environment": dict(env)}
        socket.send_fds(self._connection, [json.dumps(job).encode() + b"\n"], files)
        self._answers = self._connection.makefile("rb")
        self.pid = int(self._answers.readline())
        self.returncode: int | None = None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit code. Raises subprocess.TimeoutExpired after `timeout` seconds."""
        if self.returncode is None:
            readable, _, _ = select.select([self._connection], [], [], timeout)
            if not readable:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self.returncode = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self.returncode

    def poll(self) -> int | None:
        """Return the exit code, or None while the program runs."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def send_signal(self, number: int) -> None:
        """Send a signal, unless the program has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The process that forks. It ends with this one, however this one ends, and then removes its folder."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="forks"))
        self._address = str(self._folder / "socket")
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(self._address)
            listener.listen(16)
            command = [sys.executable, "-P", __file__, str(listener.fileno())]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()], start_new_session=True
            )
        atexit.register(self.close)
        for program in PROGRAMS:
            script = self._folder / program
            script.write_text(_SCRIPT.format(python=sys.executable, address=self._address), encoding="utf-8")
            script.chmod(0o700)

    def close(self) -> None:
        """End the process, and wait until it has removed its folder."""
        self._process.communicate()

    def program(self, name: str) -> Path:
        """Return a program that a shell or a desktop client can start in place of the installed one."""
        return self._folder / name

    def start(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str], *files: int) -> ForkedProcess:
        """Start a program with an empty standard input.

        Args:
            arguments: the name of the program, and its arguments.
            cwd: its working directory.
            env: its environment.
            files: its standard output and standard error, and optionally its file descriptor 3.
        """
        with Path(os.devnull).open("rb") as empty:
            return ForkedProcess(self._address, arguments, cwd, env, empty.fileno(), *files)

    def run(self, arguments: Sequence[str], cwd: Path, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a program to its end."""
        with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
            code = self.start(arguments, cwd, env, stdout.fileno(), stderr.fileno()).wait()
            stdout.seek(0)
            stderr.seek(0)
            return subprocess.CompletedProcess(list(arguments), code, stdout.read(), stderr.read())


@functools.cache
def fork_server() -> ForkServer:
    """Return the fork server of this process."""
    return ForkServer()


_SCRIPT = textwrap.dedent(
    """\
    #!{python} -IS
    import json, os, signal, socket, sys
    connection = socket.socket(socket.AF_UNIX)
    connection.connect({address!r})
    name = os.path.basename(sys.argv[0])
    job = {{"arguments": [name, *sys.argv[1:]], "cwd": os.getcwd(), "environment": dict(os.environ)}}
    socket.send_fds(connection, [json.dumps(job).encode() + b"\\n"], [0, 1, 2])
    answers = connection.makefile("rb")
    pid = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    os.close(0), os.close(1)
    code = int(answers.readline())
    sys.exit(code if code >= 0 else 128 - code)
    """
)


def _import_programs() -> dict[str, Callable[[], Any]]:
    """Import whatever the programs import at some time. Return their entry points."""
    import importlib
    import pkgutil

    import gatehouse

    for name in (
        *(module.name for module in pkgutil.walk_packages(gatehouse.__path__, "gatehouse.")),
        "alembic.command",
        "gunicorn.arbiter",
        "gunicorn.workers.gasgi",
        "psycopg",
        "rich.cells",
        "sqlalchemy.dialects.postgresql.psycopg",
    ):
        if ".migrations." not in name:
            importlib.import_module(name)
    sys.path.append(str(Path(__file__).parents[1]))
    entry_points = {name: importlib.import_module(f"gatehouse.{name}.cli").main for name in PROGRAMS}
    return {**entry_points, WITH_KILL_POINTS: importlib.import_module("support.kill_points").main}


def _next_job(listener: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Fork for every connection. Returns in the process of a program only."""
    while True:
        readable, _, _ = select.select([listener, sys.stdin], [], [])
        if sys.stdin in readable:
            shutil.rmtree(Path(listener.getsockname()).parent)
            os._exit(0)
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            text, files, _, _ = socket.recv_fds(connection, 1 << 16, 4)
            while not text.endswith(b"\n"):
                text += connection.recv(1 << 16)
            if (pid := os.fork()) == 0:
                return json.loads(text), files
            for file in files:
                os.close(file)
            _report(connection, pid)
        connection.close()


def _report(connection: socket.socket, pid: int) -> NoReturn:
    connection.sendall(b"%d\n" % pid)
    ended = os.pidfd_open(pid)
    readable, _, _ = select.select([connection, ended], [], [])
    if ended not in readable:
        os.kill(pid, signal.SIGTERM)
    _, status = os.waitpid(pid, 0)
    # The client may be gone.
    connection.send(b"%d\n" % os.waitstatus_to_exitcode(status), socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
    os._exit(0)


def _become(job: dict[str, Any], files: list[int]) -> None:
    for target, file in enumerate(files):
        os.dup2(file, target)
    os.closerange(len(files), 4096)
    # The streams of the parent remember what kind of file they were opened on.
    sys.stdin, sys.stdout = os.fdopen(0), os.fdopen(1, "w")
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace")
    os.chdir(job["cwd"])
    os.environ.clear()
    os.environ.update(job["environment"])
    sys.argv = job["arguments"]
    # A copy of the parent's state would give every process the same numbers.
    random.seed()


if __name__ == "__main__":
    entry_points = _import_programs()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    _become(*_next_job(socket.socket(fileno=int(sys.argv[1]))))
    sys.exit(entry_points[sys.argv[0]]())
