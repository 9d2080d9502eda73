"""The generator that sends the load where `wrk` is missing."""

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from bench.load import Load, WrongAnswers, get, post_form, send, write_requests


class Handler(BaseHTTPRequestHandler):
    """Answers a POST with its own body, and a GET with 404."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self._answer(200, self.rfile.read(int(self.headers["Content-Length"])))

    def do_GET(self) -> None:
        self._answer(404, b"nothing")

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def url(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A server, and a machine without `wrk`."""
    monkeypatch.setattr("bench.load.shutil.which", lambda _: None)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/echo"
        server.shutdown()
        thread.join()


def test_the_bundled_generator_counts_right_responses(url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests"
    write_requests(file, [post_form(url, {"number": number}, {}) for number in "12"])
    sent = send(Load(url, file, "number="), 0.2)
    assert sent.right > 16
    assert 0 < sent.p50_ms <= sent.p99_ms


def test_a_wrong_response_fails_the_load_and_is_shown(url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests"
    write_requests(file, [get(url, {})])
    with pytest.raises(WrongAnswers, match="the first wrong response: '404 nothing'"):
        send(Load(url, file, "number="), 0.2)


def test_a_load_that_may_not_repeat_requests_fails_at_their_end(url: str, tmp_path: Path) -> None:
    file = tmp_path / "requests"
    write_requests(file, [post_form(url, {"number": "1"}, {})])
    with pytest.raises(WrongAnswers, match="requests too few"):
        send(Load(url, file, "number=", once=True), 0.2)
