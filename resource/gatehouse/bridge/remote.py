"""The remote MCP server: sends each request in its own exchange, and retries where a retry is safe.

MCP 2026-07-28 has no sessions, so a server restart or a lost connection affects only the requests in flight.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import anyio
import httpx2
import structlog
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, PARSE_ERROR, DiscoverResult, Implementation, Request
from pydantic import BaseModel, ValidationError

from gatehouse.bridge.errors import MCP_SERVER, NOT_SENT, BridgeError, no_response, unreachable
from gatehouse.bridge.limits import MAX_RESPONSE, TOO_LONG, ResponseTooLong

PROTOCOL_VERSION: Final = "2026-07-28"

BACKOFF: Final = (0.2, 0.4, 0.8, 1.6, 3, 3, 3)
"""Seconds between the attempts of a request that was not executed. Their sum covers a server restart."""

ResultT = TypeVar("ResultT", bound=BaseModel)

log = structlog.stdlib.get_logger(__name__)


class _OrderedProgress:
    """Forwards progress notifications one at a time, and waits until all of them are forwarded.

    The SDK runs each callback in its own task, and cancels unfinished ones when the connection closes. Callbacks for
    notifications that precede a result have started when the result arrives, and the lock is first in, first out.
    """

    def __init__(self, forward: ProgressFnT) -> None:
        self._forward = forward
        self._lock = anyio.Lock()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        async with self._lock:
            await self._forward(progress, total, message)

    async def drain(self) -> None:
        """Return when every notification received so far was forwarded."""
        async with self._lock:
            return


class RemoteServer:
    """The remote MCP server that the bridge forwards to."""

    def __init__(
        self,
        url: str,
        http: httpx2.AsyncClient,
        client_info: Implementation,
        pauses: Sequence[float] = BACKOFF,
    ) -> None:
        """Create a client of the server.

        Args:
            url: the server's resource identifier.
            http: an HTTP client that authenticates its requests.
            client_info: the bridge's name and version, sent with each request.
            pauses: seconds between attempts.
        """
        self.url = url
        self._http = http
        self._client_info = client_info
        self._pauses = pauses

    async def discover(self) -> DiscoverResult:
        """Return the server's name and capabilities. Makes one attempt. Raises BridgeError, MCPError."""

        async def send(client: Client) -> DiscoverResult:
            return DiscoverResult.model_validate(await client.session.send_discover(PROTOCOL_VERSION))

        return await self._exchange(send)

    async def request(
        self,
        request: Request[Any, Any],
        result_type: type[ResultT],
        *,
        repeatable: bool,
        progress: ProgressFnT | None = None,
    ) -> ResultT:
        """Send a request and return its result.

        A request that was not executed is retried for some seconds. A request that may have been executed is repeated
        only if it is `repeatable`, and only once.

        Raises:
            BridgeError: the request was rejected, or its outcome is unknown.
            MCPError: the server answered with an error.
        """

        async def send(client: Client) -> ResultT:
            if progress is None:
                return await client.session.send_request(request, result_type)
            ordered = _OrderedProgress(progress)
            result = await client.session.send_request(request, result_type, progress_callback=ordered)
            await ordered.drain()
            return result

        pauses = iter(self._pauses)
        while True:
            try:
                return await self._exchange(send)
            except BridgeError as error:
                if error.outcome_unknown and repeatable:
                    repeatable = False
                elif not error.temporary:
                    raise
                if (pause := next(pauses, None)) is None:
                    raise
            await anyio.sleep(pause)

    async def _exchange(self, send: Callable[[Client], Awaitable[ResultT]]) -> ResultT:
        transport = streamable_http_client(self.url, http_client=self._http, max_sse_event_size=MAX_RESPONSE)
        try:
            async with Client(transport, mode=PROTOCOL_VERSION, cache=None, client_info=self._client_info) as client:
                return await send(client)
        except Exception as error:  # noqa: BLE001 - the SDK would send the text of any other error to the client
            raise self._root_cause(error) from None

    def _root_cause(self, error: Exception) -> Exception:
        """Return the one error that ended an exchange; the other errors of the group follow from it."""
        causes = list(_leaves(error))
        for kind in (BridgeError, httpx2.HTTPError, MCPError, ValidationError):
            for cause in causes:
                if isinstance(cause, kind):
                    return self._translate(cause)
        log.error("unexpected error", exc_info=error)
        return no_response(self.url, type(causes[0]).__name__)

    def _translate(self, cause: Exception) -> Exception:
        if isinstance(cause, NOT_SENT):
            return unreachable(MCP_SERVER, self.url, cause)
        if isinstance(cause, ResponseTooLong):
            return no_response(self.url, TOO_LONG)
        if isinstance(cause, httpx2.HTTPError):
            return no_response(self.url, type(cause).__name__)
        if isinstance(cause, MCPError) and cause.error.code == CONNECTION_CLOSED:
            return no_response(self.url, TOO_LONG if TOO_LONG in cause.error.message else "connection closed")
        # The SDK reports a response that it cannot parse with its own PARSE_ERROR.
        if isinstance(cause, ValidationError) or (isinstance(cause, MCPError) and cause.error.code == PARSE_ERROR):
            return no_response(self.url, f"not MCP {PROTOCOL_VERSION}")
        return cause


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
