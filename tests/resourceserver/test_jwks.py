"""The issuer's key set: when it is fetched, what replaces it, and which HTTP responses are accepted."""

import gzip
import json
import logging
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import create_server
from typing import Any

import anyio
import httpx2
import pytest
from support.clock import FakeClock

from gatehouse.resourceserver.bearer.fetch import Fetched, FetchFailed, http_fetch
from gatehouse.resourceserver.bearer.jwks import COOLDOWN, FIRST_COOLDOWN, KeySource, KeysUnavailable
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service import deadline

pytestmark = pytest.mark.anyio

KEY = SigningKey.generate("ES256")
OTHER_KEY = SigningKey.generate("ES256")
CAP = 64 * 1024


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


GOOD = key_set(KEY.public_jwk())


class Answers:
    """A fetch with prepared responses, which counts its calls."""

    def __init__(self, document: bytes = GOOD, etag: str | None = '"1"') -> None:
        self.answer: Fetched | FetchFailed | None = Fetched(document, etag)
        self.etags: list[str | None] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def __call__(self, etag: str | None) -> Fetched | None:
        self.etags.append(etag)
        await self.gate.wait()
        if isinstance(self.answer, FetchFailed):
            raise self.answer
        return self.answer


@pytest.fixture
async def answers(anyio_backend: str) -> Answers:
    return Answers()


@pytest.fixture
def keys(answers: Answers, clock: FakeClock) -> KeySource:
    return KeySource(answers, clock)


async def test_only_the_first_lookup_fetches(keys: KeySource, answers: Answers) -> None:
    assert not keys.ready
    assert keys.keys.get(KEY.kid) is None
    for _ in range(3):
        key = await keys.find(KEY.kid)
        assert key is not None
        assert key.alg == "ES256"
    assert keys.ready
    assert keys.keys.get(KEY.kid) is key
    assert len(answers.etags) == 1


@pytest.mark.threat("T-018")
async def test_concurrent_requests_for_an_unknown_kid_share_one_fetch(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    await keys.refresh()
    clock.advance(COOLDOWN)
    answers.answer = Fetched(key_set(KEY.public_jwk(), OTHER_KEY.public_jwk()), None)
    answers.gate = anyio.Event()
    found: list[bool] = []

    async def ask() -> None:
        found.append(await keys.find(OTHER_KEY.kid) is not None)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert keys.keys.get(KEY.kid) is not None
        answers.gate.set()
    assert found == [True] * 50
    assert len(answers.etags) == 2


async def test_a_fetch_longer_than_the_cooldown_is_shared_too(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    """Otherwise, with a silent issuer, every request with an invented kid would wait for a time-out of its own."""
    await keys.refresh()
    clock.advance(COOLDOWN)
    answers.gate = anyio.Event()

    async def ask(kid: str) -> None:
        assert await keys.find(kid) is None

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ask, f"invented-{number}")
        await anyio.wait_all_tasks_blocked()
        clock.advance(COOLDOWN)
        answers.gate.set()
    await ask("invented-after")
    assert len(answers.etags) == 2


@pytest.mark.threat("T-018")
async def test_a_flood_of_invented_kids_costs_one_fetch_per_cooldown(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    await keys.refresh()
    for round_ in range(3):
        clock.advance(COOLDOWN - 0.001)
        for number in range(20):
            assert await keys.find(f"early-{round_}-{number}") is None
        assert len(answers.etags) == 1 + round_
        clock.advance(0.001)
        for number in range(20):
            assert await keys.find(f"invented-{round_}-{number}") is None
        assert len(answers.etags) == 2 + round_
        assert keys.keys.get(KEY.kid) is not None


PRIVATE_KEY = json.loads(KEY.private_jwk())
BAD_ANSWERS = {
    "no-answer": FetchFailed("ConnectError"),
    "not-json": Fetched(b"<html>", '"2"'),
    "empty": Fetched(b"", '"2"'),
    "a-list": Fetched(b"[]", '"2"'),
    "no-keys-member": Fetched(b"{}", '"2"'),
    "no-keys": Fetched(key_set(), '"2"'),
    "a-repeated-member": Fetched(b'{"keys": [], ' + GOOD[1:], '"2"'),
    "a-private-key": Fetched(key_set(OTHER_KEY.public_jwk(), {**PRIVATE_KEY, "kid": "p", "alg": "ES256"}), '"2"'),
    "a-symmetric-key": Fetched(key_set(OTHER_KEY.public_jwk(), {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), '"2"'),
    "one-kid-twice": Fetched(key_set(OTHER_KEY.public_jwk(), {**KEY.public_jwk(), "kid": OTHER_KEY.kid}), '"2"'),
    "only-encryption-keys": Fetched(key_set({**OTHER_KEY.public_jwk(), "use": "enc"}), '"2"'),
    "10000-keys": Fetched(key_set(*[{"kty": "EC", "kid": str(n)} for n in range(10_000)]), '"2"'),
}


@pytest.mark.threat("T-019")
@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_an_invalid_response_never_replaces_a_valid_set(
    keys: KeySource, answers: Answers, answer: Fetched | FetchFailed
) -> None:
    await keys.refresh()
    known = keys.keys.get(KEY.kid)
    answers.answer = answer
    await keys.refresh()
    assert keys.ready
    assert keys.keys.get(KEY.kid) is known
    assert keys.keys.get(OTHER_KEY.kid) is None
    answers.answer = Fetched(key_set(OTHER_KEY.public_jwk()), '"3"')
    await keys.refresh()
    assert keys.keys.get(OTHER_KEY.kid) is not None
    assert keys.keys.get(KEY.kid) is None
    # The entity tag of a refused document does not belong to the set in use.
    assert answers.etags == [None, '"1"', '"1"']


async def test_an_unchanged_set_stays(keys: KeySource, answers: Answers) -> None:
    await keys.refresh()
    answers.answer = None
    await keys.refresh()
    await keys.refresh()
    assert keys.keys.get(KEY.kid) is not None
    assert answers.etags == [None, '"1"', '"1"']


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_keys_are_unavailable_only_until_the_first_is_known(
    keys: KeySource, answers: Answers, clock: FakeClock, answer: Fetched | FetchFailed
) -> None:
    good, answers.answer = answers.answer, answer
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await keys.find(KEY.kid)
    assert len(answers.etags) == 1
    answers.answer = good
    clock.advance(FIRST_COOLDOWN)
    assert await keys.find(KEY.kid) is not None
    answers.answer = answer
    clock.advance(COOLDOWN)
    assert await keys.find("unknown") is None
    assert await keys.find(KEY.kid) is not None


async def test_keys_that_are_not_used_are_logged_once(
    keys: KeySource, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = {**OTHER_KEY.public_jwk(), "kid": "enc-1", "use": "enc"}
    answers.answer = Fetched(key_set(KEY.public_jwk(), encryption), None)
    await keys.refresh()
    await keys.refresh()
    assert keys.keys.keys() == {KEY.kid}
    answers.answer = Fetched(GOOD, None)
    await keys.refresh()
    assert caplog.messages == [
        "keys of the issuer that are not used: key 2 (enc-1): its use is enc, not sig",
        "keys of the issuer that are not used: none",
    ]


async def test_an_outage_is_logged_once_at_its_start_and_once_at_its_end(
    keys: KeySource, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gatehouse.resourceserver.bearer.jwks")
    good = answers.answer
    await keys.refresh()
    assert caplog.messages == []
    answers.answer = FetchFailed("ConnectError")
    for _ in range(5):
        await keys.refresh()
    answers.answer = good
    await keys.refresh()
    assert caplog.messages == [
        "the issuer's key set was not renewed (1 keys stay in use): ConnectError",
        "the issuer's key set is renewed: 1 keys in use",
    ]


async def test_polling_fetches_before_the_first_request(keys: KeySource) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keys.poll)
        await anyio.wait_all_tasks_blocked()
        assert keys.keys.get(KEY.kid) is not None
        tasks.cancel_scope.cancel()


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


async def test_64_kib_are_read_and_one_byte_more_is_a_failure(server: JwksServer) -> None:
    server.body = GOOD.ljust(CAP)
    assert await fetch_from(server.url) == Fetched(server.body, None)
    server.body = GOOD.ljust(CAP + 1)
    with pytest.raises(FetchFailed, match="64 KiB"):
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
