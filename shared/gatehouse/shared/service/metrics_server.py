"""The process that serves /metrics for Prometheus: the sums of what the workers count in files.

It has neither settings nor keys, and imports nothing that it does not need. `metrics_process` starts it.
"""

import os
import socket
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import TCPServer
from typing import Final

from gatehouse.shared.service.addresses import split_bind

PATH: Final = "/metrics"

FOLDER: Final = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the folder of the files. prometheus_client reads it when it is imported."""

_REQUEST_TIMEOUT: Final = 10.0
"""Seconds that a client may take to send a request, or to read a part of the response."""


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
        """Log nothing: scrapes are not worth a line each."""


def main() -> None:
    """Serve until the parent ends. The arguments are the address and the process id of the parent."""
    with MetricsServer(sys.argv[1], os.environ[FOLDER], int(sys.argv[2])) as server:
        server.serve_forever()
