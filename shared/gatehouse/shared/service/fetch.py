"""Fetches documents from addresses that an administrator configured: key sets, metadata, status lists.

No redirects, no proxies of the environment, and limits on the time and the size of every response.
"""

import ssl
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

import anyio
import httpx2

from gatehouse.shared.protocol.media_types import InvalidMediaType, parse_media_type
from gatehouse.shared.protocol.redaction import mask, quoted
from gatehouse.shared.protocol.resource_identifiers import is_protected_transport
from gatehouse.shared.service.deadline import remaining
from gatehouse.shared.service.tls import certificate_problem

TIMEOUT = 5.0
"""Seconds for one request and its whole response."""

MAX_URL: Final = 2048
"""Characters of a URL that a command or a document names."""

_MAX_SHOWN: Final = 200
"""Characters of a URL in a message. What went wrong stands behind it, and must not be cut off."""

_MAX_ETAG = 256
"""Characters of an entity tag that is sent back."""


class FetchFailed(Exception):
    """The document could not be fetched. The message is for the operator."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A document, and its entity tag."""

    document: bytes
    etag: str | None


Fetch = Callable[[str | None], Awaitable[Fetched | None]]
"""Takes the last known entity tag. Returns the document, or None if it has not changed. Raises FetchFailed."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is known of the server of a document, and what is accepted from it."""

    content_types: Collection[str]
    """The last one is named in messages."""
    max_length: int
    """Bytes of a response."""
    ca_setting: str
    """What sets the trusted authorities, for messages."""
    server: str
    """What the server is, for messages."""


def is_fetchable(url: str) -> bool:
    """Tell whether a URL that a command or a document names may be fetched: https, or http on this machine.

    It is printable ASCII, without user information, which messages would repeat, and without a fragment.
    """
    if len(url) > MAX_URL or not url.isascii() or not url.isprintable() or " " in url:
        return False
    try:
        parts, read = urlsplit(url), httpx2.URL(url)
        is_address = not read.userinfo and not read.fragment and parts.port != 0
    except (httpx2.InvalidURL, ValueError):
        return False
    # The checks are about the host that is asked.
    return is_address and parts.hostname == read.host != "" and is_protected_transport(url)


def shown_url(url: str) -> str:
    """Return the beginning of a fetchable URL, for messages: without tokens, and without its query, a possible secret.

    Metadata name addresses, so their publisher decides what is in them.
    """
    address, has_query, _ = url.partition("?")
    masked = mask(address)
    shown = masked if len(masked) <= _MAX_SHOWN else f"{masked[:_MAX_SHOWN]}..."
    return f"{shown}?..." if has_query else shown


def http_client(context: ssl.SSLContext) -> httpx2.AsyncClient:
    """Return an HTTP client that uses no proxy of the environment, which would learn what this server trusts."""
    return httpx2.AsyncClient(trust_env=False, verify=context)


def http_fetch(
    client: httpx2.AsyncClient, url: str, source: Source, *, timeout: float = TIMEOUT, authorization: str | None = None
) -> Fetch:
    """Return a fetch over HTTP: no redirects, no compression, and only what the source allows.

    It takes at most `timeout` seconds in all, and within a request no longer than its deadline.
    """
    shown = shown_url(url)

    async def fetch(etag: str | None) -> Fetched | None:
        headers = {
            "Accept": ", ".join(source.content_types),
            # A small compressed response can unpack to a very large one.
            "Accept-Encoding": "identity",
            # A cache in between must revalidate: it might still hold a revoked key (RFC 9111 5.2.1.4).
            "Cache-Control": "no-cache",
        }
        if etag is not None:
            headers["If-None-Match"] = etag
        if authorization is not None:
            headers["Authorization"] = authorization
        limit = remaining(timeout)
        try:
            with anyio.fail_after(limit):
                async with client.stream("GET", url, headers=headers, follow_redirects=False) as response:
                    return await _read(response, shown, source)
        except TimeoutError:
            raise FetchFailed(f"{shown}: no answer within {limit:.3g} s") from None
        except httpx2.ConnectError as error:
            problem = certificate_problem(error, urlsplit(url).netloc, source.ca_setting)
            raise FetchFailed(f"{shown}: {problem or f'no connection; is {source.server} up?'}") from None
        except FetchFailed:
            raise
        # Errors of TLS after the handshake, and those of a malformed host or port, are none of the library's own.
        except Exception as error:  # noqa: BLE001 - callers go on after a FetchFailed only
            raise FetchFailed(f"{shown}: {type(error).__name__}") from None

    return fetch


def _check_status(response: httpx2.Response, shown: str) -> None:
    """Raise FetchFailed unless the document is in the response. `shown` is its address for messages."""
    status = response.status_code
    if status != httpx2.codes.OK:
        redirect = "; redirects are not followed" if response.has_redirect_location else ""
        raise FetchFailed(f"{shown}: status {status}, not 200{redirect}")


def _check_content_type(response: httpx2.Response, shown: str, source: Source) -> None:
    """Raise FetchFailed unless the source allows the content type."""
    value, expected = response.headers.get("content-type"), list(source.content_types)[-1]
    try:
        found = parse_media_type(value or "").name
    except InvalidMediaType:
        found = None
    if found not in source.content_types:
        described = f"its content type is {quoted(value)}" if value else "it has no content type"
        raise FetchFailed(f"{shown}: {described}, and should be {expected}")


async def _read(response: httpx2.Response, shown: str, source: Source) -> Fetched | None:
    if response.status_code == httpx2.codes.NOT_MODIFIED:
        return None
    _check_status(response, shown)
    _check_content_type(response, shown, source)
    if response.headers.get("content-encoding", "identity") != "identity":
        raise FetchFailed(f"{shown}: compressed, although the request does not accept that")
    document = bytearray()
    async for chunk in response.aiter_bytes():
        document += chunk
        if len(document) > source.max_length:
            raise FetchFailed(f"{shown}: larger than {source.max_length // 1024} KiB")
    etag = response.headers.get("etag", "")
    # It is sent back in a request header, which the client library encodes as ASCII.
    return Fetched(bytes(document), etag if etag.isascii() and 0 < len(etag) <= _MAX_ETAG else None)
