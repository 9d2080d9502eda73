"""Web pages in a real browser: a server for the pages, and headless Chromium."""

import json
import os
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from support.interop import FOLDER, TIMEOUT

PAGE = (FOLDER / "clients" / "page.html").read_text(encoding="utf-8")
SANDBOXED = "/sandboxed"
"""The path of the page as in a sandboxed frame, which has the origin `null`."""

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""The path of the browser, or None."""

_OPTIONS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@dataclass
class Pages:
    """A server of web pages. All of its addresses serve the page of tests/interop/clients."""

    port: int
    configuration: Mapping[str, Any]
    reports: "Queue[dict[str, Any]]" = field(default_factory=Queue)

    @property
    def origin(self) -> str:
        return f"http://localhost:{self.port}"


@contextmanager
def serving(pages: Pages) -> Iterator[Pages]:
    """Serve the page until the block ends."""
    server = ThreadingHTTPServer(("127.0.0.1", pages.port), _handler(pages))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield pages
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _handler(pages: Pages) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            if self.path == SANDBOXED:
                self.send_header("Content-Security-Policy", "sandbox allow-scripts")
            self.end_headers()
            self.wfile.write(PAGE.replace('"CONFIGURATION"', json.dumps(pages.configuration)).encode())

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            pages.reports.put(json.loads(body))

        def log_message(self, *_: object) -> None:
            """Print no request."""

    return Handler


def report_of(pages: Pages, home: Path, path: str = "/") -> dict[str, Any]:
    """Open a page in Chromium, and return what it reports."""
    assert CHROMIUM is not None
    command = [CHROMIUM, *_OPTIONS, f"--user-data-dir={home / 'profile'}", pages.origin + path]
    errors = home / "errors"
    with (
        # Chromium leaves the folder of its socket behind, whose path must be short. Its other processes end later.
        tempfile.TemporaryDirectory(prefix="gh-", ignore_cleanup_errors=True) as temporary,
        errors.open("wb") as stderr,
        subprocess.Popen(
            command,
            env={"PATH": os.environ["PATH"], "HOME": str(home), "TMPDIR": temporary},
            cwd=home,
            stdout=stderr,
            stderr=stderr,
        ) as process,
    ):
        try:
            report = pages.reports.get(timeout=TIMEOUT)
        except Empty:
            raise AssertionError(f"Chromium did not report:\n{errors.read_text(errors='replace')[-2000:]}") from None
        finally:
            process.terminate()
    assert "error" not in report, report
    return report
