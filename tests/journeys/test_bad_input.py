"""Malformed requests: the real servers answer each with a clear 4xx and continue serving."""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from urllib.parse import urlsplit

import pytest
from local_stack import LocalStack

KIB = 1024
TIMEOUT = 20.0
"""Seconds without an answer that count as a hang."""


def exchange(url: str, request: bytes) -> tuple[int, dict[str, str], bytes]:
    """Send bytes unchanged, and return the status, headers (names in lower case) and body of the response.

    Raises:
        AssertionError: the connection was closed before an answer was complete.
    """
    parts = urlsplit(url)
    assert parts.port is not None
    with socket.create_connection((parts.hostname, parts.port), timeout=TIMEOUT) as connection:
        # The server may respond and close the connection before it has read everything.
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(request)
        answer = b""
        while chunk := _receive(connection):
            answer += chunk
            head, separator, body = answer.partition(b"\r\n\r\n")
            headers = _headers(head)
            if separator and len(body) >= int(headers.get("content-length", "0")):
                return int(head.split(b" ", 2)[1]), headers, body
    raise AssertionError(f"no complete answer: {answer[:200]!r}")


def _receive(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


def _headers(head: bytes) -> dict[str, str]:
    lines = head.decode("latin-1").split("\r\n")[1:]
    return {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}


def post(path: str, host: str, body: bytes, *headers: bytes, length: bool = True) -> bytes:
    sized = [b"Content-Length: %d" % len(body)] if length else []
    lines = [b"POST %s HTTP/1.1" % path.encode(), b"Host: %s" % host.encode(), *headers, *sized, b"", b""]
    return b"\r\n".join(lines) + body


def chunked(body: bytes, size: int = 16 * KIB) -> bytes:
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


FORM = b"Content-Type: application/x-www-form-urlencoded"
JSON = b"Content-Type: application/json"
CHUNKED = b"Transfer-Encoding: chunked"

Build = Callable[[str], bytes]

TOKEN_REQUESTS: dict[str, tuple[int, Build]] = {
    "64 KiB and one byte": (413, lambda host: post("/token", host, b"a=" + b"x" * (64 * KIB - 1), FORM)),
    "1 MiB in chunks": (413, lambda host: post("/token", host, chunked(b"x" * KIB * KIB), FORM, CHUNKED, length=False)),
    "non-UTF-8 form": (400, lambda host: post("/token", host, b"grant_type=%ff%fe", FORM)),
    "raw bytes": (400, lambda host: post("/token", host, bytes(range(128, 256)), FORM)),
    "no content type": (400, lambda host: post("/token", host, b"grant_type=client_credentials")),
    "JSON": (400, lambda host: post("/token", host, b'{"grant_type":"client_credentials"}', JSON)),
    "parameter twice": (400, lambda host: post("/token", host, b"scope=a&scope=a", FORM)),
    "non-UTF-8 credentials": (401, lambda host: post("/token", host, b"", FORM, b"Authorization: Basic /w==")),
    "raw bytes as credentials": (401, lambda host: post("/token", host, b"", FORM, b"Authorization: Basic \xff\xfe")),
    "empty": (401, lambda host: post("/token", host, b"", FORM)),
}

MCP_REQUESTS: dict[str, tuple[int, Build]] = {
    "no token, 1 MiB": (401, lambda host: post("/mcp", host, b" " * (KIB * KIB), JSON)),
    "no token, 2 MiB in chunks": (
        401,
        lambda host: post("/mcp", host, chunked(b" " * 2 * KIB * KIB), JSON, CHUNKED, length=False),
    ),
    "no token, malformed JSON": (401, lambda host: post("/mcp", host, b"{", JSON)),
    "raw bytes as token": (401, lambda host: post("/mcp", host, b"{}", JSON, b"Authorization: Bearer \xff\xfe")),
    "9 KiB token": (401, lambda host: post("/mcp", host, b"{}", JSON, b"Authorization: Bearer " + b"a" * 9 * KIB)),
    "token without scheme": (401, lambda host: post("/mcp", host, b"{}", JSON, b"Authorization: abc")),
    "foreign host": (421, lambda host: post("/mcp", "evil.example", b"{}", JSON)),
    "foreign origin": (403, lambda host: post("/mcp", host, b"{}", JSON, b"Origin: https://evil.example")),
    "unknown path": (404, lambda host: post("/mcp/", host, b"{}", JSON)),
}


@pytest.mark.threat("T-132")
@pytest.mark.parametrize("case", TOKEN_REQUESTS)
def test_the_token_endpoint_explains_what_to_change(stack: LocalStack, case: str) -> None:
    expected, build = TOKEN_REQUESTS[case]
    status, headers, body = exchange(stack.issuer, build(urlsplit(stack.issuer).netloc))
    assert status == expected, body
    answer = json.loads(body)
    assert answer["error"] in {"invalid_request", "invalid_client"}
    assert answer["error_description"]
    assert answer["request_id"] == headers["x-request-id"]
    assert headers["cache-control"] == "no-store"


@pytest.mark.threat("T-132")
@pytest.mark.parametrize("case", MCP_REQUESTS)
def test_the_mcp_endpoint_explains_what_to_change(stack: LocalStack, case: str) -> None:
    expected, build = MCP_REQUESTS[case]
    status, headers, body = exchange(stack.resource, build(urlsplit(stack.resource).netloc))
    assert status == expected, body
    answer = json.loads(body)
    assert answer.get("error_description") or answer["error"]["message"]
    assert headers["x-request-id"] in json.dumps(answer)


MALFORMED: dict[str, tuple[int, bytes]] = {
    "no HTTP": (400, b"NONSENSE\r\n\r\n"),
    "length and chunks": (
        400,
        b"POST /token HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ),
    "negative length": (400, b"POST /mcp HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n"),
    "100 KiB header": (431, b"GET /livez HTTP/1.1\r\nHost: x\r\nX-Large: " + b"a" * 100 * KIB + b"\r\n\r\n"),
}


@pytest.mark.parametrize("server", ["authserver", "resourceserver"])
@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_http_closes_only_its_own_connection(stack: LocalStack, server: str, case: str) -> None:
    url = stack.issuer if server == "authserver" else stack.resource
    expected, request = MALFORMED[case]
    status, headers, body = exchange(url, request)
    assert status == expected, body
    assert headers["connection"] == "close"
    assert headers["x-content-type-options"] == "nosniff"
    assert json.loads(body)["request_id"] == headers["x-request-id"]
    assert exchange(url, b"GET /livez HTTP/1.1\r\nHost: x\r\n\r\n")[0] == 200


@pytest.mark.threat("T-135")
@pytest.mark.parametrize("server", ["authserver", "resourceserver"])
def test_malformed_http_leaves_an_event(stack: LocalStack, server: str) -> None:
    url = stack.issuer if server == "authserver" else stack.resource
    _, headers, _ = exchange(url, MALFORMED["100 KiB header"][1])
    deadline, events = time.monotonic() + TIMEOUT, []
    while not events and time.monotonic() < deadline:
        recent = stack.run_json(server, "audit", "--action", "http.request")
        events = [event for event in recent if event["request_id"] == headers["x-request-id"]]
    assert [(event["action"], event["outcome"], event["reason"]) for event in events] == [
        ("http.request", "refused", "LimitRequestHeaders")
    ]


def test_neither_server_logs_a_failure(stack: LocalStack) -> None:
    for server, url in (("authserver", stack.issuer), ("resourceserver", stack.resource)):
        request = b"GET /unknown HTTP/1.1\r\nHost: %s\r\n\r\n" % urlsplit(url).netloc.encode()
        _, headers, _ = exchange(url, request)
        deadline = time.monotonic() + TIMEOUT
        while headers["x-request-id"] not in (log := stack.log(server)) and time.monotonic() < deadline:
            time.sleep(0.01)
        # The control: requests are logged, in this form.
        assert "status=404" in log
        assert "Traceback" not in log
        assert "status=500" not in log
