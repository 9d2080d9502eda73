"""Fetches from the issuer over HTTP: the key set and the status lists. tests/shared/service/test_fetch.py has more."""

from collections.abc import Iterator
from contextlib import closing
from socket import create_server

import httpx2
import pytest
from support.clock import FakeClock
from support.document_server import JSON, Answer, DocumentServer
from support.key_sets import GOOD, KEY, OTHER_KEY, key_set

from gatehouse.resourceserver.bearer.fetch import http_fetch
from gatehouse.resourceserver.bearer.jwks import COOLDOWN, KeySource
from gatehouse.shared.service.fetch import Fetched, FetchFailed

pytestmark = pytest.mark.anyio

CAP = 512 * 1024
PATH = "/.well-known/jwks.json"


@pytest.fixture
def server() -> Iterator[DocumentServer]:
    """An issuer."""
    with closing(DocumentServer()) as running:
        running.answers[PATH] = Answer(GOOD)
        yield running


async def fetch_from(url: str) -> Fetched | None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        return await http_fetch(client, url)(None)


@pytest.mark.parametrize("content_type", ["application/json", "application/jwk-set+json", "application/statuslist+jwt"])
async def test_key_sets_and_status_lists_are_accepted(server: DocumentServer, content_type: str) -> None:
    server.answers[PATH] = Answer(GOOD, headers={"Content-Type": content_type})
    assert await fetch_from(f"{server.url}{PATH}") == Fetched(GOOD, None)
    accepted = "application/statuslist+jwt, application/jwk-set+json, application/json"
    assert server.requests[0].headers["accept"] == accepted


async def test_512_kib_are_read_and_one_byte_more_is_a_failure(server: DocumentServer) -> None:
    largest = GOOD.ljust(CAP)
    server.answers[PATH] = Answer(largest)
    assert await fetch_from(f"{server.url}{PATH}") == Fetched(largest, None)
    server.answers[PATH] = Answer(largest + b" ")
    with pytest.raises(FetchFailed, match="512 KiB"):
        await fetch_from(f"{server.url}{PATH}")


async def test_an_issuer_that_is_down_is_named() -> None:
    with closing(create_server(("127.0.0.1", 0))) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(FetchFailed, match=f"^http://127.0.0.1:{port}/jwks: no connection; is the authorization"):
        await fetch_from(f"http://127.0.0.1:{port}/jwks")


async def test_every_entity_tag_that_http_allows_can_be_sent_back(server: DocumentServer, clock: FakeClock) -> None:
    """RFC 9110 8.8.3: a tag may hold octets above 0x7F. A refresh that raises would stop polling permanently."""
    server.answers[PATH] = Answer(GOOD, headers={**JSON, "ETag": '"v\xe9"'})
    async with httpx2.AsyncClient(trust_env=False) as client:
        keys = KeySource(http_fetch(client, f"{server.url}{PATH}"), clock)
        await keys.refresh()
        await keys.refresh()
    assert keys.keys.get(KEY.kid) is not None
    assert len(server.requests) == 2


async def test_keys_come_over_http_and_survive_an_outage(server: DocumentServer, clock: FakeClock) -> None:
    async with httpx2.AsyncClient(trust_env=False) as client:
        keys = KeySource(http_fetch(client, f"{server.url}{PATH}"), clock)
        assert await keys.find(KEY.kid) is not None
        server.answers[PATH] = Answer(status=500)
        await keys.refresh()
        assert keys.keys.get(KEY.kid) is not None
        server.answers[PATH] = Answer(key_set(OTHER_KEY.public_jwk()))
        clock.advance(COOLDOWN)
        assert await keys.find(OTHER_KEY.kid) is not None
