"""Both servers as real processes on this machine, and their command lines: for the demo, and for the tests."""

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
from typing import Any

BIN = Path(sys.executable).parent
READY_TIMEOUT = 30.0
"""Seconds that a server may take to become ready."""


class CommandRefused(Exception):
    """A command ended with an exit code other than 0."""

    def __init__(self, arguments: Sequence[str], code: int, message: str) -> None:
        super().__init__(f"{' '.join(arguments)}: exit {code}: {message}")
        self.code = code
        self.message = message


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now.

    It is below the ports that systems assign to outgoing connections, so none of these can use it before the server.
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
    """One authorization server and one resource server, with their files in one folder."""

    folder: Path
    authserver_port: int = field(default_factory=free_port)
    resourceserver_port: int = field(default_factory=free_port)
    workers: int = 2
    settings: Mapping[str, str] = field(default_factory=dict)
    _processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def issuer(self) -> str:
        """The issuer identifier."""
        return f"http://127.0.0.1:{self.authserver_port}"

    @property
    def resource(self) -> str:
        """The resource identifier."""
        return f"http://127.0.0.1:{self.resourceserver_port}/mcp"

    @property
    def environment(self) -> dict[str, str]:
        """The environment variables of both servers and their commands."""
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
        """Run a command of either server and return what it printed. Raises CommandRefused."""
        done = subprocess.run(
            [BIN / arguments[0], *arguments[1:]],
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CommandRefused(arguments, done.returncode, done.stderr.strip())
        return done.stdout

    def run_json(self, *arguments: str) -> Any:
        """Run a command with `--output json` and return its parsed output. Raises CommandRefused."""
        return json.loads(self.run(*arguments, "--output", "json"))

    def init(self, *tools: str) -> None:
        """Prepare both installations, and register the resource with its catalogue. `tools` may be `--tools MODULE`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.run("authserver", "init")
        self.run("resourceserver", "init", *tools)
        catalogue = self.folder / "var" / "catalogue.json"
        catalogue.write_text(self.run("resourceserver", "tools", *tools, "--output", "json"), encoding="utf-8")
        self.run("authserver", "resource", "add", self.resource, "--name", "directory", "--catalogue", str(catalogue))

    def create_client(self, name: str, scope: str, *options: str) -> dict[str, Any]:
        """Register a client at the resource, and return what the command printed, its secret included."""
        arguments = ("--name", name, "--resource", self.resource, "--scope", scope, *options)
        created: dict[str, Any] = self.run_json("authserver", "client", "create", *arguments)
        return created

    def start(self, server: str, *options: str) -> None:
        """Start `authserver` or `resourceserver`; its log goes to a file in the folder."""
        log = (self.folder / f"{server}.log").open("ab")
        self._processes[server] = subprocess.Popen(
            [BIN / server, "serve", *options], cwd=self.folder, env=self.environment, stdout=log, stderr=log
        )
        log.close()

    def start_all(self) -> None:
        """Start both servers, and return when both are ready."""
        for server in ("authserver", "resourceserver"):
            self.start(server)
        for server in ("authserver", "resourceserver"):
            self.wait_until_ready(server)

    def wait_until_ready(self, server: str) -> None:
        """Return when /readyz answers 200. Raises TimeoutError with the end of the log."""
        self._wait_for(server, "/readyz")

    def wait_until_listening(self, server: str) -> None:
        """Return when /livez answers 200. Raises TimeoutError with the end of the log."""
        self._wait_for(server, "/livez")

    def _wait_for(self, server: str, path: str) -> None:
        base = self.issuer if server == "authserver" else self.resource.removesuffix("/mcp")
        deadline = time.monotonic() + READY_TIMEOUT
        while time.monotonic() < deadline:
            if self._processes[server].poll() is not None:
                break
            if _status(f"{base}{path}") == 200:
                return
            time.sleep(0.05)
        raise TimeoutError(f"{server} does not answer 200 at {path}:\n{self.log(server)[-2000:]}")

    def log(self, server: str) -> str:
        """Return what a server has logged."""
        return (self.folder / f"{server}.log").read_text(encoding="utf-8")

    def pid(self, server: str) -> int:
        """Return the process id of a server's arbiter."""
        return self._processes[server].pid

    def wait(self, server: str) -> int:
        """Wait for a server to end, and return its exit code."""
        return self._processes[server].wait()

    def kill(self, server: str) -> None:
        """Kill a server and its workers, without a chance to clean up."""
        process = self._processes.pop(server)
        for worker in _children(process.pid):
            os.kill(worker, signal.SIGKILL)
        process.kill()
        process.wait()

    def stop(self) -> None:
        """Stop both servers. They finish the requests that they are serving."""
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


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]
