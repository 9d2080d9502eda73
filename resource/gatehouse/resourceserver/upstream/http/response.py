"""Reads the HTTP responses of an upstream: their bodies, within bounds, and what it means if they are no success."""

from collections.abc import AsyncGenerator
from typing import Final

import httpx2

from gatehouse.resourceserver.upstream.messages import Answer, read_message
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.media_types import InvalidMediaType, parse_media_type

JSON: Final = "application/json"

_MAX_REFUSAL: Final = 64 * 1024
"""Bytes of the body of an answer that is not a success."""

_MAX_REST: Final = 4096
"""Bytes that are read after the answer in an event stream, to reuse its connection."""

NOT_EXECUTED: Final = frozenset({400, 404, 405, 406, 408, 411, 413, 414, 415, 417, 421, 426, 428, 431})
"""Status codes that say that the server did not process the request (RFC 9110 15.5, RFC 6585 3 and 5).

429 and 503 are not among them: proxies send them also for a request whose connection broke after it was sent.
"""

_NOT_REPEATED: Final = frozenset({307, 308})
"""Redirects that ask for the same request elsewhere (RFC 9110 15.4.8, 15.4.9), so the request was not executed. After
one with another status, such as 303, it may have been."""


class NotAccepted(UpstreamUnavailable):
    """The upstream answered that it did not process the request.

    With status 400 or 404, it may not know the session or the protocol version of the request.
    """

    def __init__(self, status: int, reason: str | None = None) -> None:
        super().__init__(reason or f"the upstream did not accept the request (HTTP status {status})")
        self.status = status


class Unauthorized(UpstreamUnavailable):
    """The upstream did not accept the credential: the request "has not been applied" (RFC 9110 15.5.2)."""


class NoAnswer(OutcomeUnknown):
    """The connection broke, or no answer came in time."""


class UnexpectedStatus(OutcomeUnknown):
    """The upstream answered with an HTTP status that does not say whether it executed the request."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the upstream answered with the HTTP status {status}")
        self.status = status


def media_type(response: httpx2.Response) -> str | None:
    """Return the name of the media type of a body; None if there is none, or several."""
    try:
        return parse_media_type(response.headers.get("content-type", "")).name
    except InvalidMediaType:
        return None


async def read_all(chunks: AsyncGenerator[bytes, None], limit: int) -> bytes:
    """Return a body. Raises OutcomeUnknown if it has more bytes than the limit, and HTTPError."""
    document = bytearray()
    async for chunk in chunks:
        document += chunk
        if len(document) > limit:
            raise too_long(limit)
    return bytes(document)


def too_long(limit: int) -> OutcomeUnknown:
    """Return the error for an answer of more bytes than the limit."""
    return OutcomeUnknown(f"the upstream sent an answer of more than {limit} bytes")


async def close(response: httpx2.Response, chunks: AsyncGenerator[bytes, None]) -> None:
    """Close a response, and its connection if the body was not read to its end."""
    await chunks.aclose()
    # A generator that was never started closes nothing.
    await response.aclose()


async def drain(response: httpx2.Response, chunks: AsyncGenerator[bytes, None]) -> None:
    """Read the end of a body that has no use, so that its connection is used again, unless it is long."""
    try:
        size = 0
        async for chunk in chunks:
            size += len(chunk)
            if size > _MAX_REST:
                break
    finally:
        await close(response, chunks)


async def read_refusal(
    response: httpx2.Response, chunks: AsyncGenerator[bytes, None], request_id: int, *, in_session: bool
) -> UpstreamError:
    """Return what a response means that is not a success.

    Args:
        response: the response.
        chunks: its body.
        request_id: the id of the request.
        in_session: whether the request named a session, which the upstream may have ended: then it answers with 404.
    """
    status = response.status_code
    if status == httpx2.codes.UNAUTHORIZED:
        return Unauthorized("the upstream did not accept the credential of the gateway (HTTP status 401)")
    if status == httpx2.codes.FORBIDDEN:
        return UpstreamUnavailable("the upstream refuses the gateway (HTTP status 403)")
    if status in _NOT_REPEATED:
        return UpstreamUnavailable("the upstream redirects to another URL: set upstream.url to the final one")
    ended = in_session and status == httpx2.codes.NOT_FOUND
    if not ended and (refused := await _json_rpc_error(response, chunks, request_id)) is not None:
        return refused
    return NotAccepted(status) if status in NOT_EXECUTED else UnexpectedStatus(status)


async def _json_rpc_error(
    response: httpx2.Response, chunks: AsyncGenerator[bytes, None], request_id: int
) -> UpstreamRefused | None:
    """Return the JSON-RPC error in the body of a response, if it answers this request."""
    if media_type(response) != JSON:
        return None
    try:
        message = read_message(await read_all(chunks, _MAX_REFUSAL))
    except OutcomeUnknown:
        return None
    if not isinstance(message, Answer) or message.request_id != request_id:
        return None
    return message.outcome if isinstance(message.outcome, UpstreamRefused) else None
