"""A real HTTP or HTTPS server on loopback that serves prepared documents and keeps the requests."""

import ssl
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

JSON = {"Content-Type": "application/json"}

_PAUSE = 0.01
"""Seconds between two bytes of a slow response."""


@dataclass(frozen=True)
class Answer:
    """A response."""

    body: bytes = b"{}"
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    raw: Iterable[bytes] | None = None
    """What is written instead of a response, with a pause after each piece."""


NOT_FOUND = Answer(status=404)


def slowly(start: bytes, end: bytes = b"") -> Answer:
    """Return an answer that takes three seconds between its start and its end: a byte now and then."""
    return Answer(raw=[start, *[b"a"] * 300, end])


@dataclass(frozen=True)
class Received:
    """A request. Names of headers are in lower case."""

    path: str
    headers: Mapping[str, str]


class DocumentServer:
    """Answers each path as a test configures."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[Received] = []
        self.arrived = threading.Semaphore(0)
        """Released once for each request."""
        self.open = threading.Event()
        """While it is not set, requests wait for their answer."""
        self.open.set()
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append(
                    Received(self.path, {name.lower(): value for name, value in self.headers.items()})
                )
                server.arrived.release()
                server.open.wait()
                self.respond(server.answers.get(self.path, NOT_FOUND))

            def respond(self, answer: Answer) -> None:
                if answer.raw is not None:
                    self.close_connection = True
                    for piece in answer.raw:
                        self.wfile.write(piece)
                        threading.Event().wait(_PAUSE)
                    return
                self.send_response(answer.status)
                for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, *_: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_: Any) -> None:
                """Say nothing of clients that close a connection early."""

        self._http = Server(("127.0.0.1", 0), Handler)
        if tls is not None:
            # The handshake of one client does not delay another one.
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def paths(self) -> list[str]:
        """Return the path of each request."""
        return [request.path for request in self.requests]

    def close(self) -> None:
        """Answer what waits, and end."""
        self.open.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()
