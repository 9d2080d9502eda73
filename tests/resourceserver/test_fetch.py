"""Fetches from the issuer over HTTP: which responses are accepted, and how long a fetch may take."""

import gzip
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server
from typing import Any

import httpx2
import pytest
from support.clock import FakeClock
from support.key_sets import GOOD, KEY, OTHER_KEY, key_set

from gatehouse.resourceserver.bearer.fetch import http_fetch
from gatehouse.resourceserver.bearer.jwks import COOLDOWN, KeySource
from gatehouse.shared.service import deadline
from gatehouse.shared.service.fetch import Fetched, FetchFailed

pytestmark = pytest.mark.anyio

CAP = 512 * 1024


class JwksServer:
    """A real HTTP server that answers every path with the same response and keeps the requests."""

    def __init__(self) -> None:
        self.status = 200
        self.headers = {"Content-Type": "application/json"}
        self.body = GOOD
        self.raw: bytes | None = None
        self.requests: list[tuple[str, dict[str, str]]] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                server.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
                if server.raw is not None:
                    self.wfile.write(server.raw)
                    return
                self.send_response(server.status)
                for name, value in {"Content-Length": str(len(server.body)), **server.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(server.body)

            def log_message(self, *_: Any) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/.well-known/jwks.json"
        self.thread = threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[JwksServer]:
    with closing(JwksServer()) as running:
        yield running


async def fetch_from(url: str, etag: str | None = None) -> Fetched | None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await http_fetch(client, url)(etag)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/jwk-set+json", "Application/JSON; charset=utf-8"]
)
async def test_a_json_response_is_returned_with_its_entity_tag(server: JwksServer, content_type: str) -> None:
    server.headers = {"Content-Type": content_type, "ETag": '"v1"'}
    assert await fetch_from(server.url) == Fetched(GOOD, '"v1"')
    [(path, sent)] = server.requests
    assert path == "/.well-known/jwks.json"
    assert "application/jwk-set+json" in sent["accept"]
    assert "if-none-match" not in sent
    assert sent["cache-control"] == "no-cache", "an intermediate cache could hide the revocation of a key"
    assert "authorization" not in sent


async def test_the_entity_tag_is_sent_back_and_304_means_unchanged(server: JwksServer) -> None:
    server.status, server.body = 304, b""
    assert await fetch_from(server.url, 'W/"v1"') is None
    assert server.requests[0][1]["if-none-match"] == 'W/"v1"'


@pytest.mark.threat("T-019")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(server: JwksServer, status: int) -> None:
    """A redirect would let its author choose the trusted keys (CVE-2026-48522 class)."""
    server.status, server.headers = status, {"Content-Type": "application/json", "Location": "/elsewhere"}
    with pytest.raises(FetchFailed, match=str(status)):
        await fetch_from(server.url)
    assert [path for path, _ in server.requests] == ["/.well-known/jwks.json"]


@pytest.mark.parametrize("status", [201, 206, 400, 401, 404, 429, 500, 503])
async def test_any_status_but_200_is_a_failure(server: JwksServer, status: int) -> None:
    server.status = status
    with pytest.raises(FetchFailed, match=str(status)):
        await fetch_from(server.url)


@pytest.mark.parametrize("content_type", ["text/html", "text/plain", "application/jsonp", "", None])
async def test_a_response_of_another_content_type_is_a_failure(server: JwksServer, content_type: str | None) -> None:
    server.headers = {} if content_type is None else {"Content-Type": content_type}
    with pytest.raises(FetchFailed, match="not application/json"):
        await fetch_from(server.url)


async def test_512_kib_are_read_and_one_byte_more_is_a_failure(server: JwksServer) -> None:
    server.body = GOOD.ljust(CAP)
    assert await fetch_from(server.url) == Fetched(server.body, None)
    server.body = GOOD.ljust(CAP + 1)
    with pytest.raises(FetchFailed, match="512 KiB"):
        await fetch_from(server.url)


async def test_a_compressed_response_is_a_failure(server: JwksServer) -> None:
    """CVE-2024-28176 class: a small response can decompress to a large one, so none is decompressed."""
    server.body = gzip.compress(GOOD)
    server.headers |= {"Content-Encoding": "gzip"}
    with pytest.raises(FetchFailed, match="compressed"):
        await fetch_from(server.url)


@pytest.mark.parametrize(
    "raw",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"SSH-2.0-OpenSSH_9.9\r\n", id="another-protocol"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{", id="cut-off"
        ),
    ],
)
async def test_a_broken_response_is_a_failure(server: JwksServer, raw: bytes) -> None:
    assert await fetch_from(server.url) == Fetched(GOOD, None)
    server.raw = raw
    with pytest.raises(FetchFailed):
        await fetch_from(server.url)


async def test_a_response_that_takes_too_long_is_a_failure(server: JwksServer) -> None:
    """The limit covers the whole fetch: an issuer that sends a byte now and then cannot keep it open."""
    assert await fetch_from(server.url) == Fetched(GOOD, None)
    with closing(create_server(("127.0.0.1", 0))) as silent:
        async with httpx2.AsyncClient(trust_env=False) as client:
            fetch = http_fetch(client, f"http://127.0.0.1:{silent.getsockname()[1]}/jwks", timeout=0.05)
            with pytest.raises(FetchFailed, match=r"no answer within 0\.05 s"):
                await fetch(None)


async def test_a_fetch_ends_at_the_deadline_of_the_request(server: JwksServer) -> None:
    assert await fetch_from(server.url) == Fetched(GOOD, None)
    with deadline.renewed(0), pytest.raises(FetchFailed, match="no answer within 0 s"):
        await fetch_from(server.url)


async def test_a_closed_port_is_a_failure() -> None:
    with closing(create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchFailed, match=f"^http://127.0.0.1:{port}/jwks: no connection; is the authorization"):
        await fetch_from(f"http://127.0.0.1:{port}/jwks")


async def test_every_entity_tag_that_http_allows_can_be_sent_back(server: JwksServer, clock: FakeClock) -> None:
    """RFC 9110 8.8.3: a tag may hold octets above 0x7F. A refresh that raises would stop polling permanently."""
    server.headers |= {"ETag": '"v\xe9"'}
    async with httpx2.AsyncClient(trust_env=False) as client:
        keys = KeySource(http_fetch(client, server.url), clock)
        await keys.refresh()
        await keys.refresh()
    assert keys.keys.get(KEY.kid) is not None
    assert len(server.requests) == 2


async def test_keys_come_over_http_and_survive_an_outage(server: JwksServer, clock: FakeClock) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        keys = KeySource(http_fetch(client, server.url), clock)
        assert await keys.find(KEY.kid) is not None
        server.status, server.body = 500, b"{}"
        await keys.refresh()
        assert keys.keys.get(KEY.kid) is not None
        server.status, server.body = 200, key_set(OTHER_KEY.public_jwk())
        clock.advance(COOLDOWN)
        assert await keys.find(OTHER_KEY.kid) is not None
