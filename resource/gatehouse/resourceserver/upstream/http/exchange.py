"""One exchange with an upstream over Streamable HTTP: a POST, and its answer as JSON or as an event stream.

The HTTP transport is used without a client around it, so that nothing follows a redirect, keeps a cookie, or asks the
environment for a proxy. What the answer proves decides the error: only a request that certainly was not executed ends
as UpstreamUnavailable, and may be repeated.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Final, NamedTuple, cast
from urllib.parse import urlsplit

import anyio
import httpx2

from gatehouse.resourceserver.catalogue.policy_file import HttpTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.http.answer import Deadline, Outgoing, read_answer
from gatehouse.resourceserver.upstream.http.credential import Credential, Headers, open_credential
from gatehouse.resourceserver.upstream.http.response import NoAnswer, Unauthorized, close, drain
from gatehouse.resourceserver.upstream.upstream import (
    MAX_TIMEOUTS,
    OutcomeUnknown,
    UpstreamBusy,
    UpstreamError,
    UpstreamUnavailable,
)
from gatehouse.shared.service.settings import InvalidSettings
from gatehouse.shared.service.tls import certificate_problem, tls_context

COURTESY: Final = 2.0
"""Seconds for a message whose loss has no consequence, such as a cancellation."""

_CONNECTIONS: Final = 100
_KEPT_OPEN: Final = 4.0
"""Seconds that an unused connection is kept: less than the 5 of Node and uvicorn, which would close it in use."""

_MAX_WAIT: Final = 10.0
"""Seconds that a free connection, the connection and its TLS handshake may each take."""

_CA_FILE: Final = "upstream.ca_file"

log = logging.getLogger(__name__)


class Reply(NamedTuple):
    """The answer to a request."""

    result: dict[str, Any]
    session_id: str | None
    """The value of the header Mcp-Session-Id."""


class Endpoint:
    """The MCP endpoint of an upstream, and the connections to it."""

    def __init__(self, settings: UpstreamSettings, credential: Credential | None = None) -> None:
        """Create it, without a connection. `credential` replaces that of the settings."""
        transport = cast("HttpTransport", settings.transport)
        self._ca_file = transport.ca_file
        self._url = httpx2.URL(transport.url)
        self._netloc = urlsplit(transport.url).netloc
        self._timeout = settings.timeout
        self._max_result = settings.max_result
        self._credential = credential or open_credential(transport)
        wait = min(_MAX_WAIT, settings.timeout / 4)
        self._extensions = {"timeout": {"pool": wait, "connect": wait}}
        self._transport: httpx2.AsyncHTTPTransport | None = None
        self._running = False
        self._background: set[asyncio.Task[None]] = set()

    def _connections(self) -> httpx2.AsyncHTTPTransport:
        """Raises UpstreamUnavailable: the certificates of the trusted authorities cannot be loaded."""
        if self._transport is None:
            verify: Any = False
            if self._url.scheme == "https":
                try:
                    verify = tls_context(self._ca_file, _CA_FILE)
                except InvalidSettings as error:
                    raise UpstreamUnavailable(str(error)) from None
            limits = httpx2.Limits(
                max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS, keepalive_expiry=_KEPT_OPEN
            )
            self._transport = httpx2.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)
        return self._transport

    @asynccontextmanager
    async def running(self, *loops: Callable[[], Coroutine[Any, Any, None]]) -> AsyncIterator[None]:
        """Run functions in the background until the block ends, and then close every connection."""
        self._running = True
        tasks = [asyncio.create_task(loop()) for loop in loops]
        try:
            yield
        finally:
            self._running = False
            for task in tasks:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.gather(*tasks, *self._background, return_exceptions=True)
                await self._credential.close()
                if self._transport is not None:
                    await self._transport.aclose()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Do something in the background, within COURTESY seconds. Its failure has no consequence."""
        if not self._running:
            work.close()
            return
        task = asyncio.create_task(_within_courtesy(work))
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def request(self, outgoing: Outgoing) -> Reply:
        """Send a request and return the answer. Repeat it once if the upstream wants a new credential.

        Raises:
            UpstreamError: there is no result.
        """
        presented = await self._credential.headers()
        try:
            return await self._within_time(outgoing, presented)
        except Unauthorized:
            renewed = await self._credential.renewed(presented)
            if renewed is None:
                raise
        return await self._within_time(outgoing, renewed)

    async def send(self, method: str, body: bytes, headers: Headers) -> None:
        """Send a notification, the answer to a request of the server, or a DELETE, whatever the response.

        Raises:
            UpstreamError: the upstream did not respond.
        """
        presented = await self._credential.headers()
        with self._explained():
            async with asyncio.timeout(self._timeout):
                response = await self._open(method, body, [*headers, *presented])
                await response.aclose()

    async def _within_time(self, outgoing: Outgoing, presented: Headers) -> Reply:
        with self._explained():
            async with asyncio.timeout(self._timeout) as timer:
                return await self._exchange(outgoing, presented, timer)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turn the failures of a connection into NoAnswer."""
        try:
            yield
        except TimeoutError:
            raise NoAnswer(f"the upstream did not answer within {self._timeout:g} s") from None
        except (httpx2.HTTPError, OSError) as error:
            # The transport does not translate every error of TLS.
            raise NoAnswer(f"the connection to the upstream broke ({type(error).__name__})") from None

    async def _exchange(self, outgoing: Outgoing, presented: Headers, timer: asyncio.Timeout) -> Reply:
        last = asyncio.get_running_loop().time() + MAX_TIMEOUTS * self._timeout
        response = await self._open("POST", outgoing.body, [*outgoing.headers, *presented])
        chunks = response.aiter_raw()
        try:
            answer = await read_answer(
                response, chunks, outgoing, self._max_result, Deadline(timer, self._timeout, last)
            )
        except BaseException as error:
            # In 2026-07-28, closing the connection of an unfinished answer cancels the request.
            await close(response, chunks)
            if isinstance(error, OutcomeUnknown):
                # After an answer to another request, all that follow on the connection may be such.
                await response.extensions["network_stream"].aclose()
            raise
        if not response.is_closed:
            await self._finish(response, chunks)
        return Reply(answer.result(), response.headers.get("mcp-session-id"))

    async def _open(self, method: str, body: bytes, headers: Headers) -> httpx2.Response:
        """Send a request, and return the response once its headers have come. Raises UpstreamUnavailable, HTTPError."""
        request = httpx2.Request(method, self._url, headers=headers, content=body, extensions=self._extensions)
        try:
            return await self._connections().handle_async_request(request)
        except httpx2.PoolTimeout:
            raise UpstreamBusy("every connection to the upstream is in use") from None
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            problem = certificate_problem(error, self._netloc, _CA_FILE)
            raise UpstreamUnavailable(problem or f"no connection to the upstream at {self._netloc}") from None

    async def _finish(self, response: httpx2.Response, chunks: AsyncGenerator[bytes, None]) -> None:
        """Read the end of an event stream after its answer in the background, so that its connection is used again."""
        if self._running:
            self.spawn(drain(response, chunks))
        else:
            await close(response, chunks)


async def _within_courtesy(work: Coroutine[Any, Any, None]) -> None:
    try:
        async with asyncio.timeout(COURTESY):
            await work
    except (UpstreamError, httpx2.HTTPError, OSError) as error:
        log.debug("a message to the upstream was lost: %s", type(error).__name__)
