"""Reads the answer to a request over Streamable HTTP: as JSON, or from an event stream."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final, NamedTuple

import httpx2

from gatehouse.resourceserver.upstream.http.credential import Headers
from gatehouse.resourceserver.upstream.http.event_stream import EventReader
from gatehouse.resourceserver.upstream.http.response import JSON, NoAnswer, media_type, read_all, read_refusal, too_long
from gatehouse.resourceserver.upstream.messages import Answer, ProgressNotification, ServerRequest, read_message
from gatehouse.resourceserver.upstream.upstream import Notify, OutcomeUnknown

_MAX_REQUESTS: Final = 16
"""Requests of the server that are answered during one call."""

_EVENTS: Final = "text/event-stream"


class Outgoing(NamedTuple):
    """A request to the upstream."""

    request_id: int
    body: bytes
    headers: Headers
    notify: Notify | None = None
    """Receives the progress; None if none was requested."""
    answer: Callable[[bytes], None] | None = None
    """Sends the answer to a request of the server; None for a protocol version in which it must not send any."""
    in_session: bool = False
    """Whether the request names a session."""


class Deadline:
    """When an exchange ends: counted from the last progress, and at the latest MAX_TIMEOUTS times as late."""

    def __init__(self, timer: asyncio.Timeout, timeout: float, last: float) -> None:
        self._timer = timer
        self._timeout = timeout
        self._last = last

    def extend(self) -> None:
        """Count from now."""
        self._timer.reschedule(min(asyncio.get_running_loop().time() + self._timeout, self._last))


async def read_answer(
    response: httpx2.Response,
    chunks: AsyncGenerator[bytes, None],
    outgoing: Outgoing,
    max_result: int,
    deadline: Deadline,
) -> Answer:
    """Read the answer to a request: JSON, or an event stream up to it.

    Args:
        response: the response.
        chunks: its body.
        outgoing: the request.
        max_result: bytes of the body, at most.
        deadline: is extended by progress.

    Raises:
        UpstreamError: there is no answer.
        HTTPError: the connection broke.
    """
    if response.status_code != httpx2.codes.OK:
        raise await read_refusal(response, chunks, outgoing.request_id, in_session=outgoing.in_session)
    if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise OutcomeUnknown("the upstream sent a compressed answer, which the request does not accept")
    kind = media_type(response)
    if kind == JSON:
        message = read_message(await read_all(chunks, max_result))
        if not isinstance(message, Answer):
            raise OutcomeUnknown("the upstream sent another message in place of the answer")
        return _with_id(message, outgoing.request_id)
    if kind == _EVENTS:
        return await _read_events(chunks, max_result, outgoing, deadline)
    raise OutcomeUnknown(f"the upstream sent an answer that is neither {JSON} nor {_EVENTS}")


async def _read_events(
    chunks: AsyncGenerator[bytes, None], limit: int, outgoing: Outgoing, deadline: Deadline
) -> Answer:
    """Read up to the answer. The limit is for everything before it, too, and so for the number of notifications."""
    reader = EventReader()
    progress = float("-inf")
    size = requests = 0
    async for chunk in chunks:
        size += len(chunk)
        if size > limit:
            raise too_long(limit)
        for data in reader.feed(chunk):
            message = read_message(data)
            if isinstance(message, Answer):
                return _with_id(message, outgoing.request_id)
            if isinstance(message, ServerRequest):
                requests += 1
                if outgoing.answer is None or requests > _MAX_REQUESTS:
                    raise OutcomeUnknown("the upstream sent a request, or too many, in place of the answer")
                outgoing.answer(message.answer)
            elif message is not None and _is_progress(message, outgoing, progress) and outgoing.notify is not None:
                progress = message.progress
                await outgoing.notify(message.progress, message.total, message.message)
                deadline.extend()
    raise NoAnswer("the upstream ended the event stream without an answer")


def _is_progress(message: ProgressNotification, outgoing: Outgoing, last: float) -> bool:
    """Tell whether a notification is of this request, and more than the last one (MCP, "Progress")."""
    return message.token == outgoing.request_id and message.progress > last


def _with_id(answer: Answer, request_id: int) -> Answer:
    if answer.request_id != request_id:
        raise OutcomeUnknown("the upstream answered another request")
    return answer
