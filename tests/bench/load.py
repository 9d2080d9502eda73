"""Load on one server: 16 connections that send prepared requests. `wrk` sends them, or the generator beside this file.

Both take the same file of requests, and count a response as right if its status is the expected one and its body
contains the expected text.
"""

import json
import math
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlencode, urlsplit

CONNECTIONS = 16

_FOLDER = Path(__file__).parent


class WrongAnswers(Exception):
    """A server did not answer as expected, or the load ran out of requests."""


@dataclass(frozen=True, slots=True)
class Load:
    """What to send to a server, and what it must answer."""

    url: str
    file: Path
    """The requests; see `write_requests`."""
    contained: str
    """A text that the body of every right response contains."""
    once: bool = False
    """No request may be sent twice. Otherwise the file starts again at its end."""
    status: int = 200


@dataclass(frozen=True, slots=True)
class Sent:
    """What the load counted. Latencies are in milliseconds."""

    right: int
    seconds: float
    p50_ms: float
    p99_ms: float


def post(url: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return a POST as it is sent."""
    return _http("POST", url, {**headers, "Content-Length": str(len(body))}) + body


def post_form(url: str, form: Mapping[str, str], headers: Mapping[str, str]) -> bytes:
    """Return a POST of a form as it is sent."""
    return post(url, urlencode(form).encode(), {**headers, "Content-Type": "application/x-www-form-urlencoded"})


def post_json(url: str, body: object, headers: Mapping[str, str]) -> bytes:
    """Return a POST of a JSON document as it is sent."""
    content = json.dumps(body, separators=(",", ":")).encode()
    return post(url, content, {**headers, "Content-Type": "application/json"})


def get(url: str, headers: Mapping[str, str]) -> bytes:
    """Return a GET as it is sent."""
    return _http("GET", url, headers)


def _http(method: str, url: str, headers: Mapping[str, str]) -> bytes:
    parts = urlsplit(url)
    lines = [f"{method} {parts.path} HTTP/1.1", f"Host: {parts.netloc}", *(f"{k}: {v}" for k, v in headers.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def write_requests(file: Path, requests: Iterable[bytes]) -> None:
    """Write requests to a file: for each, a line with its length in bytes, then the request itself."""
    with file.open("wb") as out:
        for request in requests:
            out.write(b"%d\n%b" % (len(request), request))


def generator() -> str:
    """Return the name of what sends the requests."""
    return "wrk" if shutil.which("wrk") else "the bundled generator"


def send(load: Load, seconds: float) -> Sent:
    """Send requests for some seconds; `wrk` rounds them up. Raises WrongAnswers."""
    parts = urlsplit(load.url)
    url = f"http://{parts.netloc}"
    arguments = [str(load.file), "once" if load.once else "again", str(load.status), load.contained]
    if shutil.which("wrk"):
        options = [
            f"-t1 -c{CONNECTIONS} -d{math.ceil(seconds)}s --timeout 10s".split(),
            ["-s", str(_FOLDER / "wrk.lua"), url],
        ]
        command = ["wrk", *options[0], *options[1], "--", *arguments]
    else:
        command = [sys.executable, str(_FOLDER / "generator.py"), url, str(CONNECTIONS), str(seconds), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("BENCH "):
            return _counted(line.split(" ", 8)[1:])
    raise WrongAnswers(f"the load failed: {(done.stderr or done.stdout)[-500:]}")


def _counted(fields: list[str]) -> Sent:
    right, wrong, exhausted, broken, duration, p50, p99 = map(int, fields[:7])
    if wrong or broken or exhausted or not right:
        raise WrongAnswers(
            f"{right} right and {wrong} wrong responses, {broken} broken connections, "
            f"{exhausted} requests too few; the first wrong response: {fields[7]!r}"
        )
    return Sent(right, duration / 1e6, p50 / 1000, p99 / 1000)
