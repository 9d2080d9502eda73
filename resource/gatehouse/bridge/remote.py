"""Requests to the remote MCP server, each in an exchange of its own.

MCP 2026-07-28 has no sessions: a request stands for itself, so neither a restart of the server nor a broken connection
takes anything away but the requests under way.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Final, TypeVar

import anyio
import httpx2
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.dispatcher import ProgressFnT
from mcp.shared.exceptions import MCPError
from mcp_types import CONNECTION_CLOSED, PARSE_ERROR, DiscoverResult, Implementation, Request
from pydantic import BaseModel, ValidationError

from gatehouse.bridge.discovery import MCP_SERVER
from gatehouse.bridge.failures import NOT_SENT, Failure, broken_off, not_reached

PROTOCOL_VERSION: Final = "2026-07-28"

BACKOFF: Final = (0.2, 0.4, 0.8, 1.6, 3, 3, 3)
"""Seconds between the tries of a request that was not carried out: together, what a server takes to restart."""

ResultT = TypeVar("ResultT", bound=BaseModel)


class _InOrder:
    """Passes progress on, one after the other, and knows when all of it has been.

    The SDK runs each callback in a task of its own, and ends those that are not done when the connection closes. What
    came before a result has begun when the result is there, and a lock lets nobody pass who came later.
    """

    def __init__(self, tell: ProgressFnT) -> None:
        self._tell = tell
        self._lock = anyio.Lock()

    async def __call__(self, progress: float, total: float | None, message: str | None) -> None:
        async with self._lock:
            await self._tell(progress, total, message)

    async def all(self) -> None:
        """Return when everything that came was passed on."""
        async with self._lock:
            return


class Remote:
    """The remote server, as a client sees it."""

    def __init__(
        self,
        url: str,
        http: httpx2.AsyncClient,
        client_info: Implementation,
        pauses: Sequence[float] = BACKOFF,
    ) -> None:
        """Talk to the server at a URL through a client that authenticates, with pauses in seconds between tries."""
        self.url = url
        self._http = http
        self._client_info = client_info
        self._pauses = pauses

    async def discover(self) -> DiscoverResult:
        """Return what the server is and has. Tried once. Raises Failure, MCPError."""

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

        What was not carried out is tried again for some seconds. What may have been carried out is repeated only if
        it is `repeatable`, and once.

        Raises:
            Failure: the request was refused, or its fate is not known.
            MCPError: the server answered with an error.
        """

        async def send(client: Client) -> ResultT:
            if progress is None:
                return await client.session.send_request(request, result_type)
            told = _InOrder(progress)
            result = await client.session.send_request(request, result_type, progress_callback=told)
            await told.all()
            return result

        pauses = iter(self._pauses)
        while True:
            try:
                return await self._exchange(send)
            except Failure as failure:
                if failure.outcome_unknown and repeatable:
                    repeatable = False
                elif not failure.temporary:
                    raise
                if (pause := next(pauses, None)) is None:
                    raise
            await anyio.sleep(pause)

    async def _exchange(self, send: Callable[[Client], Awaitable[ResultT]]) -> ResultT:
        transport = streamable_http_client(self.url, http_client=self._http)
        try:
            async with Client(transport, mode=PROTOCOL_VERSION, cache=None, client_info=self._client_info) as client:
                return await send(client)
        except (ExceptionGroup, Failure, httpx2.HTTPError, MCPError, ValidationError) as error:
            raise self._translate(error) from None

    def _translate(self, error: Exception) -> Exception:
        """Return the one cause of all that ended an exchange: the first to fail takes the others with it."""
        causes = list(_leaves(error))
        for kind in (Failure, httpx2.HTTPError, MCPError, ValidationError):
            for cause in causes:
                if isinstance(cause, kind):
                    return self._failure(cause)
        return error

    def _failure(self, cause: Exception) -> Exception:
        if isinstance(cause, NOT_SENT):
            return not_reached(MCP_SERVER, self.url, cause)
        if isinstance(cause, httpx2.HTTPError):
            return broken_off(self.url, type(cause).__name__)
        if isinstance(cause, MCPError) and cause.error.code == CONNECTION_CLOSED:
            return broken_off(self.url, "it was closed")
        # The SDK's own code, for an answer that it cannot read.
        if isinstance(cause, ValidationError) or (isinstance(cause, MCPError) and cause.error.code == PARSE_ERROR):
            return broken_off(self.url, f"it was not MCP {PROTOCOL_VERSION}")
        return cause


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error
