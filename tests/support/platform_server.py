"""Publishes the platforms of the tests over HTTP, and stands in for their command lines and their kubelet."""

import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from support.clock import FakeClock
from support.platforms import Platform


class SystemClock(FakeClock):
    """The time of the system, for platforms whose tokens are presented to servers in other processes."""

    def __call__(self) -> float:
        return time.time()


@dataclass(frozen=True)
class Asked:
    """A GET request to a platform."""

    path: str
    parameters: dict[str, str]
    authorization: str | None


Answer = Callable[[Asked], bytes | None]
"""Returns the body of the response, which is JSON or text; None for 404."""


@contextmanager
def serving(answer: Answer, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve answers on loopback until the block ends, and yield the URL. With a TLS context, the URL is https."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            url = urlsplit(self.path)
            body = answer(Asked(url.path, dict(parse_qsl(url.query)), self.headers["Authorization"]))
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"{'http' if context is None else 'https'}://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def move(platform: Platform, issuer: str) -> None:
    """Give a platform another issuer, which its tokens then name."""
    platform.issuer = platform.workload["iss"] = issuer


def published(platform: Platform, path: str) -> bytes | None:
    """Return what a platform publishes at a path below its issuer: its metadata, and its keys at `/keys`."""
    if path == "/.well-known/openid-configuration":
        return to_json({"issuer": platform.issuer, "jwks_uri": f"{platform.issuer}/keys"})
    return platform.jwks() if path == "/keys" else None


def to_json(value: Any) -> bytes:
    """Return compact JSON."""
    return json.dumps(value).encode()


_PROGRAM = """\
#!/bin/sh
exec curl -fsS -G --data-urlencode "arguments=$*" {url}/programs/{name}
"""


def install_programs(folder: Path, url: str, *names: str) -> None:
    """Write programs that print what a server answers at `/programs/NAME` for their arguments."""
    folder.mkdir()
    for name in names:
        program = folder / name
        program.write_text(_PROGRAM.format(url=url, name=name), encoding="utf-8")
        program.chmod(0o700)


class ProjectedToken:
    """The file with a service account's token in a pod. It is replaced as kubelet does: all of a folder at once."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self._written = 0
        self.file = folder / "token"
        self.file.symlink_to("..data/token")

    def replace(self, token: str) -> None:
        """Write a token into a new folder, and make the link `..data` point to it."""
        self._written += 1
        data, link = self._folder / "..data", self._folder / "..data_tmp"
        old = data.resolve() if data.is_symlink() else None
        new = self._folder / f"..{self._written}"
        new.mkdir()
        (new / "token").write_text(token, encoding="ascii")
        link.symlink_to(new.name)
        link.rename(data)
        if old is not None:
            (old / "token").unlink()
            old.rmdir()
