"""Serves /metrics for Prometheus, in a process of its own, which `serve` starts and supervises.

The process reads the files in which the workers count, and holds neither settings nor keys. Files of workers that have
ended stay, so that no count is lost; only their gauges go.
"""

import logging
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from socketserver import TCPServer
from typing import Final

from gatehouse.shared.service.addresses import split_bind
from gatehouse.shared.service.settings import InvalidSettings

PATH: Final = "/metrics"

_FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of the files. prometheus_client reads it when it is imported."""

_RESTART_INTERVAL: Final = 5.0
"""Seconds between two starts of the process."""

_STOP_TIMEOUT: Final = 5.0
"""Seconds that the process may need to end."""

_REQUEST_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a request, or to read a part of the response."""

_PROGRAM: Final = "from gatehouse.shared.service.metrics_server import main; main()"

_INHERITED: Final = ("LD_LIBRARY_PATH", "PATH")
"""Variables that the process gets. Others may hold secrets."""

log = logging.getLogger(__name__)


class MetricsProcess:
    """The process that serves /metrics, as its parent sees it."""

    def __init__(self, name: str, bind: str, parent_folder: str | None) -> None:
        """Create the folder of the files, and set the variable that names it. Call this before the first import.

        Args:
            name: the server.
            bind: HOST:PORT to listen on. No other server on this machine uses the same.
            parent_folder: where to create the folder. None for the system's folder for temporary files.

        Raises:
            InvalidSettings: the folder exists, and is not private.
            OSError: the folder cannot be created.
        """
        self._bind = bind
        port = split_bind(bind)[1]
        self._folder = Path(parent_folder or tempfile.gettempdir()) / f"gatehouse-{name}-metrics-{os.geteuid()}-{port}"
        _empty(self._folder)
        os.environ[_FOLDER] = str(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = float("-inf")

    def supervise(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start the process, unless it runs. One that ends is started again after five seconds."""
        if self._process is not None and self._process.poll() is None:
            return
        now = monotonic()
        if now - self._started < _RESTART_INTERVAL:
            return
        if self._process is not None:
            log.error("the process that serves %s has ended; it is started again", PATH)
        self._started = now
        try:
            self._process = self._start()
        except OSError as error:
            # The servers go on without it.
            log.error("the process that serves %s cannot be started: %s", PATH, error.strerror)

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {name: os.environ[name] for name in (*_INHERITED, _FOLDER) if name in os.environ}
        command = [sys.executable, "-I", "-c", _PROGRAM, self._bind, str(os.getpid())]
        # In a session of its own, because Ctrl-C must not end it before the workers.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603

    def forget(self, pid: int) -> None:
        """Remove the gauges of a worker that has ended. What it counted stays in the sums."""
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

        mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End the process, and remove the folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Create a folder, or remove the files of one that a killed server left. Raises InvalidSettings, OSError."""
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o077:
        raise InvalidSettings(
            f"{folder}, where the metrics are counted, is not a private folder of this user; remove it"
        )
    for file in folder.iterdir():
        file.unlink()


class MetricsServer(ThreadingHTTPServer):
    """Answers GET /metrics with the sums of all processes."""

    def __init__(self, bind: str, folder: str, parent: int) -> None:
        """Listen on an address. Raises OSError."""
        from prometheus_client import CollectorRegistry  # noqa: PLC0415
        from prometheus_client.multiprocess import MultiProcessCollector  # noqa: PLC0415

        self.registry: CollectorRegistry = CollectorRegistry()
        MultiProcessCollector(self.registry, folder)  # type: ignore[no-untyped-call]
        self._parent = parent
        host, port = split_bind(bind)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """Bind the socket. That of HTTPServer also asks the DNS for the name of the address."""
        TCPServer.server_bind(self)

    def service_actions(self) -> None:
        """End the process when its parent has ended. Called every half second."""
        if os.getppid() != self._parent:
            raise SystemExit


class _Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    server: MetricsServer
    timeout = _REQUEST_TIMEOUT
    server_version = "gatehouse"
    sys_version = ""

    def do_GET(self) -> None:
        """Answer with the metrics, or with 404 for any other path."""
        from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, generate_latest  # noqa: PLC0415

        if self.path.partition("?")[0] != PATH:
            self.send_error(404)
            return
        try:
            body = generate_latest(self.server.registry)
        except Exception:  # noqa: BLE001 - whatever the library raises about a file that a worker is creating
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", CONTENT_TYPE_PLAIN_0_0_4)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the standard library
        """Log nothing: a scrape is no event."""


def main() -> None:
    """Serve until the parent ends. The arguments are the address and the process id of the parent."""
    with MetricsServer(sys.argv[1], os.environ[_FOLDER], int(sys.argv[2])) as server:
        server.serve_forever()
