"""Fetches documents of the issuer over HTTP: its key set and its status lists."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import anyio
import httpx2

from gatehouse.resourceserver.settings import CA_FILE_SETTING, Settings
from gatehouse.shared.protocol.media_types import InvalidMediaType, parse_media_type
from gatehouse.shared.protocol.status_list import MEDIA_TYPE
from gatehouse.shared.service.deadline import remaining
from gatehouse.shared.service.tls import certificate_problem, tls_context

_TIMEOUT = 5.0
"""Seconds for one request and its whole response."""

_MAX_LENGTH = 512 * 1024
"""Bytes of a response: the names of MAX_LISTS status lists need most of them."""

_MAX_ETAG = 256
"""Characters of an entity tag that is sent back."""

_CONTENT_TYPES = (MEDIA_TYPE, "application/jwk-set+json", "application/json")


class FetchFailed(Exception):
    """The document could not be fetched. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document of the issuer, and its entity tag."""

    document: bytes
    etag: str | None


Fetch = Callable[[str | None], Awaitable[Fetched | None]]
"""Takes the last known entity tag. Returns the document, or None if it has not changed. Raises FetchFailed."""


def create_http(settings: Settings) -> httpx2.AsyncClient:
    """Return the HTTP client for the issuer.

    It uses no proxy of the environment, which would learn which issuer this server trusts.

    Raises:
        InvalidSettings: the trusted certificate authorities cannot be loaded.
    """
    return httpx2.AsyncClient(trust_env=False, verify=tls_context(settings.ca_file, CA_FILE_SETTING))


def http_fetch(client: httpx2.AsyncClient, url: str, *, timeout: float = _TIMEOUT) -> Fetch:
    """Return a fetch over HTTP: no redirects, at most 512 KiB, only the content types of the issuer's documents.

    It takes at most `timeout` seconds in all, and within a request no longer than its deadline.
    """

    async def fetch(etag: str | None) -> Fetched | None:
        headers = {
            "Accept": ", ".join(_CONTENT_TYPES),
            # A small compressed response can unpack to a very large one.
            "Accept-Encoding": "identity",
            # A cache in between must revalidate: it might still hold a revoked key (RFC 9111 5.2.1.4).
            "Cache-Control": "no-cache",
        }
        if etag is not None:
            headers["If-None-Match"] = etag
        limit = remaining(timeout)
        try:
            with anyio.fail_after(limit):
                async with client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                    return await _read(response, url)
        except TimeoutError:
            raise FetchFailed(f"{url}: no answer within {limit:.3g} s") from None
        except httpx2.ConnectError as error:
            problem = certificate_problem(error, urlsplit(url).netloc, CA_FILE_SETTING)
            raise FetchFailed(f"{url}: {problem or 'no connection; is the authorization server up?'}") from None
        except httpx2.HTTPError as error:
            raise FetchFailed(f"{url}: {type(error).__name__}") from None

    return fetch


def _content_type(response: httpx2.Response) -> str | None:
    try:
        return parse_media_type(response.headers.get("content-type", "")).name
    except InvalidMediaType:
        return None


async def _read(response: httpx2.Response, url: str) -> Fetched | None:
    if response.status_code == httpx2.codes.NOT_MODIFIED:
        return None
    if response.status_code != httpx2.codes.OK or _content_type(response) not in _CONTENT_TYPES:
        raise FetchFailed(f"{url}: status {response.status_code} or not {_CONTENT_TYPES[-1]}")
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed(f"{url}: compressed, although the request does not accept that")
    document = bytearray()
    async for chunk in response.aiter_bytes():
        document += chunk
        if len(document) > _MAX_LENGTH:
            raise FetchFailed(f"{url}: larger than 512 KiB")
    etag = response.headers.get("etag", "")
    # It is sent back in a request header, which the client library encodes as ASCII.
    return Fetched(bytes(document), etag if etag.isascii() and 0 < len(etag) <= _MAX_ETAG else None)
