"""Rows of the documents below `/.well-known/`, compared with a server that only sends the same bytes."""

import json
import os
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from bench.contest import Contestant
from bench.load import Load, get, write_requests
from bench.row import Bench, Outcome
from bench.servers import Server, running
from bench.verdicts import Target
from local_stack import free_port

from gatehouse.shared.service.requests import SECURITY_HEADERS

_ADDED = {"date", "server", "connection", "transfer-encoding", "x-request-id"} | {
    name.lower() for name in SECURITY_HEADERS
}
"""Headers that gunicorn adds, or that are part of every response."""

_FOLDER = Path(__file__).parent


def document(server: str, path: str, bench: Bench) -> Outcome:
    """Fetch a document of `authserver` or `resourceserver`: as a whole, and with the ETag that it has, if any."""
    ours = bench.installation("authserver", *(["resourceserver"] if server == "resourceserver" else []))
    running_server = getattr(ours, server)
    base = running_server.url.removesuffix("/mcp")
    with urllib.request.urlopen(f"{base}{path}", timeout=30) as response:
        body, headers, etag = response.read(), dict(response.headers), response.headers.get("ETag")
    hello = _start_hello(bench, body, headers)
    contestants = [
        _fetches("ours", running_server, base + path, body),
        _fetches("hello", hello, hello.url + path, body),
    ]
    if etag is not None:
        contestants.append(_fetches("ours, 304", running_server, base + path, b"", etag))
    return bench.contest([one.uncompared() for one in contestants], {"hello": Target(1.2, 1.4)}, None)


def _start_hello(bench: Bench, body: bytes, headers: Mapping[str, str]) -> Server:
    """Start the server that sends the same body and headers."""
    file = bench.folder / "document"
    file.write_bytes(body)
    port = free_port()
    sent = {name: value for name, value in headers.items() if name.lower() not in _ADDED}
    command = [sys.executable, str(_FOLDER / "hello.py"), f"127.0.0.1:{port}", str(file), json.dumps(sent)]
    url = f"http://127.0.0.1:{port}"
    return bench.exits.enter_context(running(command, url, bench.folder, os.environ, "hello"))


def _fetches(name: str, server: Server, url: str, body: bytes, etag: str | None = None) -> Contestant:
    """Fetch a document. With an ETag, the answer is 304."""

    def prepare(file: Path, _: int) -> Load:
        write_requests(file, [get(url, {"If-None-Match": etag} if etag else {})])
        return Load(server.url, file, body.decode()[:40], status=304 if etag else 200)

    def answer(received: bytes) -> None:
        if received != body:
            raise KeyError(f"another document: {received!r}")

    return Contestant(name, server, prepare, answer)
