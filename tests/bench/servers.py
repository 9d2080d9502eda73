"""The servers of a row, each pinned to one CPU in a process group of its own."""

import base64
import json
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from local_stack import BIN, READY_TIMEOUT, LocalStack, Process, free_port
from support import limits

SERVER_CPU, LOAD_CPU = 0, 1
"""The CPUs of the servers, and of the benchmark itself with its load."""

SCOPE = "env:read env:write"
"""The scopes that clients are granted."""


UNCOUNTED = "ours without limits and metrics"
"""The name of a contestant, and of its installation."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server. `group` is the id of its process group, and of the group's first process."""

    url: str
    group: int


def pinned(command: Sequence[str]) -> list[str]:
    """Return a command that runs another one on SERVER_CPU, in the same process."""
    return ["taskset", "--cpu-list", str(SERVER_CPU), *command]


def start_pinned(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], log: int
) -> subprocess.Popen[bytes]:
    """Start a server in a new process group, pinned to SERVER_CPU before it runs."""
    return subprocess.Popen(
        pinned(command),
        cwd=folder,
        env=environment,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


def basic(client: Mapping[str, Any]) -> dict[str, str]:
    """Return the header of client_secret_basic (RFC 6749 section 2.3.1)."""
    pair = f"{client['client_id']}:{client['client_secret']}"
    return {"Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}


def claims_of(token: str) -> dict[str, Any]:
    """Return the claims of a JWT, which is not verified."""
    payload = token.split(".")[1]
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    return claims


class Stack(LocalStack):
    """Both of our servers with default settings, but one worker each, metrics, and limits that the load does not reach.

    With `counts=False`, they have neither metrics nor limits.
    """

    def __init__(self, folder: Path, *, counts: bool = True, **settings: str) -> None:
        if counts:
            metrics = {f"{name}_METRICS_BIND": f"127.0.0.1:{free_port()}" for name in ("AUTHSERVER", "RESOURCESERVER")}
            settings = {**limits.VARIABLES, **metrics, **settings}
        else:
            settings = {**limits.OFF, **settings}
        super().__init__(folder, workers=1, settings=settings)

    def _start(self, arguments: Sequence[str], log: int) -> Process:
        return start_pinned([str(BIN / arguments[0]), *arguments[1:]], self.folder, self.environment, log)

    def stop_one(self, server: str) -> None:
        """Stop one server with SIGTERM, and wait until it has ended."""
        process = self._processes.pop(server)
        process.terminate()
        process.wait(30)

    @property
    def authserver(self) -> Server:
        """The running authorization server."""
        return Server(self.issuer, self.pid("authserver"))

    @property
    def resourceserver(self) -> Server:
        """The running resource server."""
        return Server(self.resource, self.pid("resourceserver"))

    def tokens(self, client: Mapping[str, Any], number: int = 1) -> list[str]:
        """Return new access tokens of a client with a secret."""
        form, issued = "grant_type=client_credentials", []
        headers = {**basic(client), "Content-Type": "application/x-www-form-urlencoded"}
        with closing(HTTPConnection("127.0.0.1", self.authserver_port, timeout=30)) as connection:
            for _ in range(number):
                connection.request("POST", "/token", form, headers)
                issued.append(str(json.load(connection.getresponse())["access_token"]))
        return issued


@contextmanager
def running(
    command: Sequence[str], url: str, folder: Path, environment: Mapping[str, str], name: str
) -> Iterator[Server]:
    """Run a server that is not ours until the block ends. It is ready when it accepts connections.

    Raises:
        RuntimeError: it ended, or accepts no connection in time; with the end of its log.
    """
    log = folder / f"{name}.log"
    with log.open("ab") as output:
        process = start_pinned(command, folder, environment, output.fileno())
    try:
        _wait(process, url, log)
        yield Server(url, process.pid)
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT
    while process.poll() is None and time.monotonic() < deadline:
        try:
            urllib.request.urlopen(url, timeout=2).close()
        except urllib.error.HTTPError as answered:
            answered.close()
            return
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"no server at {url}:\n{log.read_text(encoding='utf-8', errors='replace')[-2000:]}")
