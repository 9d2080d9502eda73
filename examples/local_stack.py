"""Run both servers as local processes, with their command lines. The demo and the tests use it."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

BIN = Path(sys.executable).parent
READY_TIMEOUT = 30.0
"""Seconds to wait for a server to become ready."""


class Process(Protocol):
    """What a stack needs of a running server: a part of `subprocess.Popen`."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class CommandRefused(Exception):
    """A command exited with a code other than 0."""

    def __init__(self, arguments: Sequence[str], code: int, message: str) -> None:
        super().__init__(f"{' '.join(arguments)}: exit {code}: {message}")
        self.code = code
        self.message = message


def free_port() -> int:
    """Return an unused port of 127.0.0.1.

    It is below the ports that systems assign to outgoing connections, so none of them can occupy it before the
    server starts.
    """
    while True:
        port = random.SystemRandom().randrange(20000, 32000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@dataclass
class LocalStack:
    """An authorization server and a resource server that keep their files in one folder."""

    folder: Path
    authserver_port: int = field(default_factory=free_port)
    resourceserver_port: int = field(default_factory=free_port)
    workers: int = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    _processes: dict[str, Process] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        """The issuer identifier of the authorization server."""
        return f"http://127.0.0.1:{self.authserver_port}"

    @property
    def resource(self) -> str:
        """The resource identifier of the resource server."""
        return f"http://127.0.0.1:{self.resourceserver_port}/mcp"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of both servers and of their commands."""
        inherited = {name: value for name, value in os.environ.items() if "SERVER_" not in name}
        return {
            **inherited,
            "AUTHSERVER_ISSUER": self.issuer,
            "AUTHSERVER_BIND": f"127.0.0.1:{self.authserver_port}",
            "AUTHSERVER_WORKERS": str(self.workers),
            "RESOURCESERVER_RESOURCE": self.resource,
            "RESOURCESERVER_ISSUER": self.issuer,
            "RESOURCESERVER_BIND": f"127.0.0.1:{self.resourceserver_port}",
            "RESOURCESERVER_WORKERS": str(self.workers),
            **self.settings,
        }

    def run(self, *arguments: str) -> str:
        """Run a command of either server, and return its standard output. Raises CommandRefused."""
        done = self._run(arguments)
        if done.returncode != 0:
            raise CommandRefused(arguments, done.returncode, done.stderr.strip())
        return done.stdout

    def run_json(self, *arguments: str) -> Any:
        """Run a command with `--output json`, and return its parsed output. Raises CommandRefused."""
        return json.loads(self.run(*arguments, "--output", "json"))

    def init(self, *tools: str) -> None:
        """Run `init` for both servers, and register the resource. `tools` may be `--tools MODULE`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run("authserver", "init")
        self.run("resourceserver", "init", *tools)
        catalogue = self.folder / "var" / "catalogue.json"
        catalogue.write_text(self.run("resourceserver", "tools", *tools, "--output", "json"), encoding="utf-8")
        self.run("authserver", "resource", "add", self.resource, "--name", "directory", "--catalogue", str(catalogue))

    def create_client(self, name: str, scope: str, *options: str) -> dict[str, Any]:
        """Register a client with grants at the resource. Return the JSON output, which includes the new secret."""
        arguments = ("--name", name, "--resource", self.resource, "--scope", scope, *options)
        created: dict[str, Any] = self.run_json("authserver", "client", "create", *arguments)
        return created

    def start(self, server: str, *options: str) -> None:
        """Start `authserver` or `resourceserver`. It logs to SERVER.log in the folder."""
        log = (self.folder / f"{server}.log").open("ab")
        self._processes[server] = self._start([server, "serve", *options], log.fileno())
        log.close()

    def start_all(self) -> None:
        """Start both servers, and wait until both are ready. Raises TimeoutError."""
        for server in ("authserver", "resourceserver"):
            self.start(server)
        for server in ("authserver", "resourceserver"):
            self.wait_until_ready(server)

    def wait_until_ready(self, server: str) -> None:
        """Wait until /readyz answers 200. Raises TimeoutError, with the end of the log."""
        self._wait_for(server, "/readyz")

    def wait_until_listening(self, server: str) -> None:
        """Wait until /livez answers 200. Raises TimeoutError, with the end of the log."""
        self._wait_for(server, "/livez")

    def _run(self, arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
        command = [BIN / arguments[0], *arguments[1:]]
        return subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True, check=False
        )

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        command = [BIN / arguments[0], *arguments[1:]]
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, stdout=log, stderr=log)

    def _wait_for(self, server: str, path: str) -> None:
        base = self.issuer if server == "authserver" else self.resource.removesuffix("/mcp")
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if self._processes[server].poll() is not None:
                break
            if _status(f"{base}{path}") == 200:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{server} did not answer 200 at {path}:\n{self.log(server)[-2000:]}")

    def log(self, server: str) -> str:
        """Return the log of a server."""
        return (self.folder / f"{server}.log").read_text(encoding="utf-8")

    def pid(self, server: str) -> int:
        """Return the process id of a server's gunicorn arbiter, the parent of its workers."""
        return self._processes[server].pid

    def wait(self, server: str) -> int:
        """Wait until a server exits, and return its exit code."""
        return self._processes[server].wait()

    def kill(self, server: str) -> None:
        """Kill a server and its workers with SIGKILL."""
        process = self._processes.pop(server)
        for worker in child_processes(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Stop both servers with SIGTERM, and kill those that are still running after 15 s."""
        for process in self._processes.values():
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()


def _status(url: str) -> int | None:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:  # noqa: S310 - a loopback URL
            status: int = response.status
            return status
    except urllib.error.HTTPError as error:
        error.close()
        return error.code
    except OSError:
        return None


def child_processes(pid: int) -> list[int]:
    """Return the ids of the children of a process (Linux)."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
