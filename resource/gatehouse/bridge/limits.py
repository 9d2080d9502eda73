"""Limits on the responses of other servers."""

from collections.abc import AsyncIterator
from typing import Final, cast

import httpx2

MAX_RESPONSE: Final = 16 * 1024 * 1024
"""Bytes of the body of a response, and of an event stream from its start to its end."""

TOO_LONG: Final = f"longer than {MAX_RESPONSE // 1024**2} MiB"


class ResponseTooLong(httpx2.TransportError):
    """The body of a response exceeds MAX_RESPONSE."""


def bound_body(response: httpx2.Response) -> None:
    """Limit what is read of the body of a response, which raises ResponseTooLong, or SSEError in an event stream.

    httpcore2 limits the headers, to about 100 KiB.
    """
    is_event_stream = response.headers.get("content-type", "").lower().startswith("text/event-stream")
    response.stream = _BoundedStream(cast("httpx2.AsyncByteStream", response.stream), is_event_stream)


def is_compressed(response: httpx2.Response) -> bool:
    """Return whether the body of a response is compressed, although the bridge accepts only `identity`."""
    return response.headers.get("content-encoding", "").strip().lower() not in {"", "identity"}


class _BoundedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, is_event_stream: bool) -> None:
        self._stream = stream
        self._is_event_stream = is_event_stream

    async def __aiter__(self) -> AsyncIterator[bytes]:
        read = 0
        try:
            async for part in self._stream:
                read += len(part)
                if read > MAX_RESPONSE:
                    raise ResponseTooLong(TOO_LONG)
                yield part
        except httpx2.TransportError as error:
            if self._is_event_stream:
                raise httpx2.SSEError(str(error)) from error
            raise
        if self._is_event_stream:
            # The reader stops at the response, so it reaches the end only of a stream without one. The SDK would then
            # reconnect without limit, after as long a pause as the server names. MCP 2026-07-28 resumes no streams.
            raise httpx2.SSEError("The stream ended without a response.")

    async def aclose(self) -> None:
        await self._stream.aclose()
