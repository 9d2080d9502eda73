"""Fetches of documents over HTTP: which responses are accepted, and how long a fetch may take."""

import gzip
import os
import socket
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, closing
from pathlib import Path
from socket import create_server

import httpx2
import pytest
from support.certificates import Authority
from support.document_server import JSON, Answer, DocumentServer, slowly

from gatehouse.shared.service import deadline
from gatehouse.shared.service.fetch import MAX_URL, Fetched, FetchFailed, Source, http_client, http_fetch, is_fetchable
from gatehouse.shared.service.tls import tls_context

pytestmark = pytest.mark.anyio

KIB = 1024
SOURCE = Source(
    content_types=("application/jwk-set+json", "application/json"),
    max_length=64 * KIB,
    ca_setting="--ca-file",
    server="the issuer",
)
PATH = "/jwks.json"
GOOD = b'{"keys": []}'


@pytest.fixture
def server() -> Iterator[DocumentServer]:
    """A server with one document."""
    with closing(DocumentServer()) as running:
        running.answers[PATH] = Answer(GOOD)
        yield running


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@asynccontextmanager
async def client(context: ssl.SSLContext | None = None) -> AsyncIterator[httpx2.AsyncClient]:
    async with http_client(context or tls_context(None, "--ca-file")) as opened:
        yield opened


async def fetch_from(
    url: str, etag: str | None = None, *, context: ssl.SSLContext | None = None, limit: float = 5.0
) -> Fetched | None:
    async with client(context) as opened:
        return await http_fetch(opened, url, SOURCE, timeout=limit)(etag)


async def fetch(server: DocumentServer, answer: Answer | None = None, *, limit: float = 5.0) -> Fetched | None:
    """Fetch the document, after a change of the answer."""
    if answer is not None:
        server.answers[PATH] = answer
    return await fetch_from(f"{server.url}{PATH}", limit=limit)


@pytest.mark.parametrize(
    "content_type", ["application/json", "application/jwk-set+json", "Application/JSON; charset=utf-8"]
)
async def test_a_json_response_is_returned_with_its_entity_tag(server: DocumentServer, content_type: str) -> None:
    answer = Answer(GOOD, headers={"Content-Type": content_type, "ETag": '"v1"'})
    assert await fetch(server, answer) == Fetched(GOOD, '"v1"')
    [request] = server.requests
    assert request.path == PATH
    assert request.headers["accept"] == "application/jwk-set+json, application/json"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["cache-control"] == "no-cache", "an intermediate cache could hide the revocation of a key"
    assert not {"if-none-match", "authorization", "cookie"} & request.headers.keys()


async def test_the_entity_tag_is_sent_back_and_304_means_unchanged(server: DocumentServer) -> None:
    server.answers[PATH] = Answer(b"", 304)
    assert await fetch_from(f"{server.url}{PATH}", 'W/"v1"') is None
    assert server.requests[0].headers["if-none-match"] == 'W/"v1"'


@pytest.mark.parametrize("tag", ["", '"v\xe9"', f'"{"v" * 255}"'], ids=["empty", "not-ascii", "too-long"])
async def test_an_entity_tag_that_cannot_be_sent_back_is_dropped(server: DocumentServer, tag: str) -> None:
    assert await fetch(server, Answer(GOOD, headers={**JSON, "ETag": '"v1"'})) == Fetched(GOOD, '"v1"')
    assert await fetch(server, Answer(GOOD, headers={**JSON, "ETag": tag})) == Fetched(GOOD, None)


async def test_an_authorization_is_sent_if_the_server_requires_one(server: DocumentServer) -> None:
    async with client() as opened:
        await http_fetch(opened, f"{server.url}{PATH}", SOURCE, authorization="Bearer token")(None)
    assert server.requests[0].headers["authorization"] == "Bearer token"


@pytest.mark.threat("T-019")
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(server: DocumentServer, status: int) -> None:
    """A redirect would let its author choose the trusted keys (CVE-2026-48522 class)."""
    server.answers["/elsewhere"] = Answer(GOOD)
    assert await fetch(server) == Fetched(GOOD, None)
    with pytest.raises(FetchFailed, match=f"{PATH}: status {status}, not 200; redirects are not followed$"):
        await fetch(server, Answer(GOOD, status, {**JSON, "Location": "/elsewhere"}))
    assert server.paths() == [PATH, PATH]


@pytest.mark.parametrize("status", [201, 206, 400, 401, 404, 429, 500, 503])
async def test_any_status_but_200_is_a_failure(server: DocumentServer, status: int) -> None:
    with pytest.raises(FetchFailed, match=f"{PATH}: status {status}, not 200$"):
        await fetch(server, Answer(GOOD, status))


@pytest.mark.parametrize(
    ("content_type", "reason"),
    [
        ("text/html; charset=utf-8", "its content type is text/html; charset=utf-8, and should be application/json"),
        ("application/jsonp", "its content type is application/jsonp, and should be application/json"),
        (
            "application/json, text/html",
            "its content type is application/json, text/html, and should be application/json",
        ),
        ("json", "its content type is json, and should be application/json"),
        ("", "it has no content type, and should be application/json"),
        (None, "it has no content type, and should be application/json"),
    ],
)
async def test_a_response_of_another_content_type_is_a_failure(
    server: DocumentServer, content_type: str | None, reason: str
) -> None:
    assert await fetch(server) == Fetched(GOOD, None)
    headers = {} if content_type is None else {"Content-Type": content_type}
    with pytest.raises(FetchFailed) as failed:
        await fetch(server, Answer(GOOD, headers=headers))
    assert str(failed.value) == f"{server.url}{PATH}: {reason}"


async def test_a_content_type_cannot_forge_a_message(server: DocumentServer) -> None:
    """CWE-117, CWE-150: the message reaches the terminal of an operator."""
    assert await fetch(server) == Fetched(GOOD, None)
    with pytest.raises(FetchFailed) as failed:
        await fetch(server, Answer(GOOD, headers={"Content-Type": "\x9b2Jx" + "y" * 500}))
    assert str(failed.value).endswith(f"its content type is \\x9b2Jx{'y' * 96}, and should be application/json")


async def test_the_limit_is_read_and_one_byte_more_is_a_failure(server: DocumentServer) -> None:
    largest = GOOD.ljust(64 * KIB)
    assert await fetch(server, Answer(largest)) == Fetched(largest, None)
    with pytest.raises(FetchFailed, match="larger than 64 KiB"):
        await fetch(server, Answer(largest + b" "))


async def test_an_endless_response_is_a_failure(server: DocumentServer) -> None:
    """No length announces the end of this one, and it is not read to its end."""
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n"
    with pytest.raises(FetchFailed, match="larger than 64 KiB"):
        await fetch(server, Answer(raw=[head, *[b" " * 64 * KIB] * 100]))


async def test_headers_without_end_are_a_failure(server: DocumentServer) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
    with pytest.raises(FetchFailed, match="RemoteProtocolError"):
        await fetch(server, Answer(raw=[head, *[b"X-Padding: " + b"a" * 8000 + b"\r\n"] * 100]))


@pytest.mark.parametrize("encoding", ["gzip", "identity, gzip", "br"])
async def test_a_compressed_response_is_a_failure(server: DocumentServer, encoding: str) -> None:
    """CVE-2024-28176 class: a small response can decompress to a large one, so none is decompressed."""
    assert await fetch(server, Answer(GOOD, headers={**JSON, "Content-Encoding": "identity"})) == Fetched(GOOD, None)
    compressed = Answer(gzip.compress(GOOD), headers={**JSON, "Content-Encoding": encoding})
    with pytest.raises(FetchFailed, match="compressed"):
        await fetch(server, compressed)


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
async def test_a_broken_response_is_a_failure(server: DocumentServer, raw: bytes) -> None:
    assert await fetch(server) == Fetched(GOOD, None)
    with pytest.raises(FetchFailed):
        await fetch(server, Answer(raw=[raw]))


async def test_a_silent_server_is_a_failure(server: DocumentServer) -> None:
    assert await fetch(server) == Fetched(GOOD, None)
    server.open.clear()
    with pytest.raises(FetchFailed, match=r"no answer within 0\.1 s"):
        await fetch(server, limit=0.1)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
SLOW = {
    "headers": slowly(HEAD + b"X-Padding: ", b"\r\n\r\n{}"),
    "body": slowly(HEAD + b"Content-Length: 304\r\n\r\n", b"done"),
    "informational": Answer(raw=[b"HTTP/1.1 102 Processing\r\n\r\n"] * 300 + [HEAD + b"\r\n{}"]),
}


@pytest.mark.threat("T-019")
@pytest.mark.parametrize("slow", SLOW)
async def test_a_server_that_sends_a_little_now_and_then_is_a_failure(server: DocumentServer, slow: str) -> None:
    """The limit covers the whole fetch. One for each read would never end it (CWE-400, "slow drip")."""
    assert await fetch(server) == Fetched(GOOD, None)
    with pytest.raises(FetchFailed, match=r"no answer within 0\.2 s"):
        await fetch(server, SLOW[slow], limit=0.2)


async def test_a_fetch_ends_at_the_deadline_of_the_request(server: DocumentServer) -> None:
    assert await fetch(server) == Fetched(GOOD, None)
    with deadline.renewed(0), pytest.raises(FetchFailed, match="no answer within 0 s"):
        await fetch(server)


async def test_a_closed_port_is_a_failure() -> None:
    with closing(create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchFailed, match=f"^http://127.0.0.1:{port}/jwks: no connection; is the issuer up"):
        await fetch_from(f"http://127.0.0.1:{port}/jwks")


async def test_no_proxy_of_the_environment_is_used(server: DocumentServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would learn whom this server trusts, and could answer for a server on this machine."""
    with closing(DocumentServer()) as proxy:
        for variable in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(variable, proxy.url)
        monkeypatch.setenv("NO_PROXY", "")
        assert await fetch(server) == Fetched(GOOD, None)
        assert proxy.requests == []


async def test_a_certificate_of_a_trusted_authority_is_accepted(authority: Authority) -> None:
    with closing(DocumentServer(authority.server_context())) as server:
        server.answers[PATH] = Answer(GOOD)
        url = f"{server.url}{PATH}"
        assert await fetch_from(url, context=tls_context(authority.file, "--ca-file")) == Fetched(GOOD, None)
        with pytest.raises(FetchFailed, match=r"certificate of 127\.0\.0\.1:\d+ is not trusted .* set --ca-file or"):
            await fetch_from(url)
        assert len(server.requests) == 1


async def test_tls_that_fails_after_the_handshake_is_a_failure(authority: Authority) -> None:
    """The library passes that error on as it is."""

    def stop_encrypting(listener: socket.socket) -> None:
        connection, _ = listener.accept()
        with authority.server_context().wrap_socket(connection, server_side=True) as encrypted:
            encrypted.recv(1)
            with socket.socket(fileno=os.dup(encrypted.fileno())) as plain:
                plain.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                while plain.recv(1024):
                    pass

    with closing(create_server(("127.0.0.1", 0))) as listener, ThreadPoolExecutor(1) as threads:
        serving = threads.submit(stop_encrypting, listener)
        with pytest.raises(FetchFailed, match=r": SSLError$"):
            await fetch_from(
                f"https://127.0.0.1:{listener.getsockname()[1]}{PATH}",
                context=tls_context(authority.file, "--ca-file"),
            )
        serving.result(30)


@pytest.mark.parametrize(
    "host", ["[::", f"{'a' * 64}.example.com", "a..example.com", "127.0.0.1:99999", "ex\tample.com"]
)
async def test_a_malformed_host_is_a_failure(host: str) -> None:
    """A refresh that raises another error would stop polling permanently."""
    with pytest.raises(FetchFailed):
        await fetch_from(f"https://{host}/jwks")


@pytest.mark.parametrize(
    "url",
    [
        "https://issuer.example.com/jwks",
        "https://issuer.example.com:8443/jwks?version=2",
        "https://[2001:db8::1]/jwks",
        "http://127.0.0.1:8080/jwks",
        "http://localhost/jwks",
        f"https://issuer.example.com/{'a' * (MAX_URL - 27)}",
    ],
)
def test_an_address_over_https_or_on_this_machine_may_be_fetched(url: str) -> None:
    assert is_fetchable(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "jwks",
        "/jwks",
        "https:///jwks",
        "http://issuer.example.com/jwks",
        "http://localhost.example.com/jwks",
        "file:///etc/passwd",
        "ftp://127.0.0.1/jwks",
        "https://user@issuer.example.com/jwks",
        "https://user:password@issuer.example.com/jwks",
        "https://issuer.example.com/jwks#keys",
        "https://issuer.example.com/j wks",
        "https://issuer.exa\tmple.com/jwks",
        "https://issuer.example.com/jwks\n",
        "https://issuer.exämple.com/jwks",
        "https://issuer.example.com:0/jwks",
        "https://issuer.example.com:99999/jwks",
        "https://issuer.example.com:port/jwks",
        "https://[2001:db8::1/jwks",
        "https://[issuer]/jwks",
        "https://issuer.example.com\\@evil.example.com/jwks",
        f"https://issuer.example.com/{'a' * (MAX_URL - 26)}",
    ],
)
def test_any_other_url_must_not_be_fetched(url: str) -> None:
    assert not is_fetchable(url)
