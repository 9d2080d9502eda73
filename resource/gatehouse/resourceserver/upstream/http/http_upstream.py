"""An upstream that speaks Streamable HTTP, of the protocol version 2026-07-28 or one with a handshake."""

import hashlib
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final, cast

import anyio
from mcp.shared.inbound import find_invalid_x_mcp_header

from gatehouse.resourceserver.catalogue.policy_file import HttpTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.caller_identity import CALLER_HEADER, CallerIdentity
from gatehouse.resourceserver.upstream.http.caller_sessions import CallerSessions
from gatehouse.resourceserver.upstream.http.client import HttpClient, Identify
from gatehouse.resourceserver.upstream.http.credential import Credential, Headers
from gatehouse.resourceserver.upstream.http.exchange import Endpoint
from gatehouse.resourceserver.upstream.http.response import NotAccepted
from gatehouse.resourceserver.upstream.http.session_store import Connection, SessionStore, SharedSession
from gatehouse.resourceserver.upstream.messages import MODERN_VERSION
from gatehouse.resourceserver.upstream.tool_list import collect_tools
from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown, ToolCall, UpstreamError, UpstreamUnavailable
from gatehouse.shared.protocol.claims import AccessClaims

_CHANGED: Final = frozenset({400, 404})
"""Status codes that may mean that the upstream now has another protocol version, or knows no session."""

log = logging.getLogger(__name__)


class HttpUpstream:
    """An upstream that speaks Streamable HTTP."""

    def __init__(
        self,
        settings: UpstreamSettings,
        sessions: SessionStore | None = None,
        *,
        identity: CallerIdentity | None = None,
        credential: Credential | None = None,
    ) -> None:
        """Create it, without a connection.

        Args:
            settings: those of an upstream with an HttpTransport.
            sessions: the sessions of callers. None for a command, which calls no tool.
            identity: signs who calls, if the settings say that the upstream is told it.
            credential: replaces that of the settings.
        """
        self._endpoint = Endpoint(settings, credential)
        self._client = client = HttpClient(self._endpoint, _identify(settings, identity))
        self._sessions: CallerSessions | None = None
        if sessions is not None:
            digest, open_ = upstream_digest(settings), self._open_callers_session
            self._sessions = CallerSessions(
                sessions, digest, settings, open_=open_, end=client.end, is_known=client.is_known
            )
        self._own: Connection | None = None
        """How to speak to the upstream, with the gateway's own session. None until it is negotiated."""
        self._negotiating = anyio.Lock()
        self._failures = 0
        self._failure = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Return the context in which the upstream can be used. It does not wait for the upstream to answer."""
        loops = [] if self._sessions is None else [self._sessions.maintain_regularly]
        async with self._endpoint.running(*loops):
            try:
                yield
            finally:
                own, self._own = self._own, None
                if own is not None:
                    self._client.end(own)

    async def list_tools(self) -> list[dict[str, Any]]:
        """Return all tools, of every page, as the upstream describes them. Raises UpstreamError."""
        connection = await self._negotiated()
        try:
            return await self._list(connection)
        except NotAccepted:
            return await self._list(await self._negotiated(instead_of=connection))

    async def _list(self, connection: Connection) -> list[dict[str, Any]]:
        tools = await collect_tools(partial(self._client.request, connection, "tools/list"))
        if connection.protocol_version != MODERN_VERSION:
            return tools
        # MCP 2026-07-28, "Schema Extension": a tool whose headers cannot be made is excluded.
        usable = [tool for tool in tools if find_invalid_x_mcp_header(tool["inputSchema"]) is None]
        if ignored := len(tools) - len(usable):
            log.warning("%d tools of the upstream are ignored: their x-mcp-header is invalid", ignored)
        return usable

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        """Call a tool, and return the `result` of the answer, as `Upstream.call_tool` does. Raises UpstreamError."""
        connection = await self._negotiated()
        try:
            return await self._call(connection, call)
        except NotAccepted as error:
            if error.status not in _CHANGED:
                raise
            # Nothing was executed. It helps to repeat the call only if the upstream has changed.
            changed = await self._negotiated(instead_of=connection)
            if _era(changed) == _era(connection):
                raise
        return await self._call(changed, call)

    async def _call(self, connection: Connection, call: ToolCall) -> dict[str, Any]:
        if connection.session_id is None:
            return await self._client.call(call, connection)
        if self._sessions is None:
            raise UpstreamUnavailable("the upstream is stateful, and a command has no sessions of callers")
        return await self._sessions.run(call.caller, partial(self._client.call, call))

    async def _open_callers_session(self) -> Connection:
        opened = await self._client.open_session()
        if opened.session_id is None:
            # The upstream is stateless now.
            raise NotAccepted(404)
        if self._own is not None and opened.session_id == self._own.session_id:
            raise SharedSession
        return opened

    async def _negotiated(self, instead_of: Connection | None = None) -> Connection:
        """Return how to speak to the upstream, as negotiated again if that has been in this way until now.

        Raises:
            UpstreamUnavailable: nothing could be agreed.
        """
        if self._own is not None and self._own is not instead_of:
            return self._own
        failures = self._failures
        async with self._negotiating:
            if self._own is None or self._own is instead_of:
                if self._failures != failures:
                    # It failed while this call waited for its turn, and it would again.
                    raise UpstreamUnavailable(self._failure)
                self._own = await self._negotiate(self._own)
            return self._own

    async def _negotiate(self, before: Connection | None) -> Connection:
        self._own = None
        if before is not None:
            self._client.end(before)
        try:
            if await self._client.is_modern():
                return Connection(MODERN_VERSION)
            return await self._client.open_session()
        except UpstreamError as error:
            self._failures += 1
            self._failure = str(error)
            if isinstance(error, OutcomeUnknown):
                # The call that waits for the negotiation was not sent.
                raise UpstreamUnavailable(self._failure) from error
            raise


def _identify(settings: UpstreamSettings, identity: CallerIdentity | None) -> Identify | None:
    if not settings.caller_identity:
        return None
    url = cast("HttpTransport", settings.transport).url

    def identify(claims: AccessClaims) -> Headers:
        if identity is None:
            raise UpstreamUnavailable("the upstream is told who calls, and a command has no key to sign it with")
        return [(CALLER_HEADER, identity.assertion(claims, url))]

    return identify


def _era(connection: Connection) -> tuple[str, bool]:
    return connection.protocol_version, connection.session_id is not None


def upstream_digest(settings: UpstreamSettings) -> str:
    """Return the digest that stands for an upstream in the database: of its URL, and of the credential's identity.

    With another credential, a session would be that of another client of the upstream.
    """
    transport = cast("HttpTransport", settings.transport)
    return hashlib.sha256(repr((transport.url, transport.credential)).encode()).hexdigest()
