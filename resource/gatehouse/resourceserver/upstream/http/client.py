"""The messages of MCP over Streamable HTTP, in either era of the protocol: headers, handshake, calls and sessions."""

import asyncio
import re
import secrets
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from mcp.shared.inbound import encode_header_value, find_invalid_x_mcp_header, mcp_param_headers, x_mcp_header_map

from gatehouse.resourceserver.upstream.http.answer import Outgoing
from gatehouse.resourceserver.upstream.http.credential import Headers
from gatehouse.resourceserver.upstream.http.exchange import Endpoint, Reply
from gatehouse.resourceserver.upstream.http.response import NoAnswer, NotAccepted, UnexpectedStatus
from gatehouse.resourceserver.upstream.http.session_store import Connection
from gatehouse.resourceserver.upstream.messages import (
    MODERN_VERSION,
    UNSUPPORTED_VERSION,
    call_params,
    cancellation,
    initialize_params,
    is_modern,
    modern_params,
    negotiated_version,
    write_notification,
    write_request,
)
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    ToolCall,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.claims import AccessClaims

_COMMON: Final[Headers] = [
    ("Accept", "application/json, text/event-stream"),
    ("Accept-Encoding", "identity"),
    ("Content-Type", "application/json"),
    ("User-Agent", f"gatehouse/{version('gatehouse')}"),
]

_SESSION_ID = re.compile(r"[\x21-\x7e]{1,1024}")
"""MCP 2025-11-25, "Session Management": visible ASCII characters."""


Identify = Callable[[AccessClaims], Headers]
"""Returns the header fields that tell an upstream who calls."""


class HttpClient:
    """Sends messages to an endpoint over a connection: with its protocol version, and in its session."""

    def __init__(self, endpoint: Endpoint, identify: Identify | None) -> None:
        """Create it. `identify` tells the upstream who calls; None if it is not told."""
        self._endpoint = endpoint
        self._identify = identify
        self._header_maps: dict[str, tuple[Mapping[str, Any], dict[tuple[str, ...], str]]] = {}

    async def request(self, connection: Connection, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """Send a request, and return the result. Raises UpstreamError."""
        if connection.protocol_version == MODERN_VERSION:
            params = modern_params(params)
        return (await self._send(connection, _new_id(), method, params, _headers(connection, method))).result

    async def call(self, call: ToolCall, connection: Connection) -> dict[str, Any]:
        """Call a tool, and return the result. If the task is cancelled, so is the call. Raises UpstreamError."""
        request_id = _new_id()
        params = call_params(call, connection.protocol_version, request_id)
        headers = _headers(connection, "tools/call")
        if connection.protocol_version == MODERN_VERSION:
            headers.append(("Mcp-Name", encode_header_value(call.tool["name"])))
            headers += mcp_param_headers(self._header_map(call.tool), call.arguments).items()
        if self._identify is not None:
            headers += self._identify(call.claims)
        try:
            return (await self._send(connection, request_id, "tools/call", params, headers, call)).result
        except (asyncio.CancelledError, NoAnswer):
            # In 2026-07-28, the closed connection has cancelled the call.
            if connection.protocol_version != MODERN_VERSION:
                self._notify(connection, cancellation(request_id))
            raise

    def _header_map(self, tool: Mapping[str, Any]) -> dict[tuple[str, ...], str]:
        known = self._header_maps.get(tool["name"])
        if known is None or known[0] is not tool:
            schema = tool["inputSchema"]
            valid = find_invalid_x_mcp_header(schema) is None
            known = self._header_maps[tool["name"]] = (tool, x_mcp_header_map(schema) if valid else {})
        return known[1]

    async def _send(
        self,
        connection: Connection,
        request_id: int,
        method: str,
        params: Mapping[str, Any],
        headers: Headers,
        call: ToolCall | None = None,
    ) -> Reply:
        modern = connection.protocol_version == MODERN_VERSION
        try:
            body = write_request(request_id, method, params)
        except ValueError:
            raise UpstreamUnavailable("the arguments cannot be written as JSON") from None
        outgoing = Outgoing(
            request_id,
            body,
            headers,
            notify=None if call is None else call.notify,
            answer=None if modern else partial(self._notify, connection),
            in_session=connection.session_id is not None,
        )
        try:
            return await self._endpoint.request(outgoing)
        except UpstreamRefused as error:
            if modern and error.code == UNSUPPORTED_VERSION:
                # The upstream rejects such a request before it reads the rest of it.
                raise NotAccepted(400, str(error)) from None
            raise

    def _notify(self, connection: Connection, message: bytes) -> None:
        """Send a notification, or the answer to a request of the server, in the background."""
        self._endpoint.spawn(self._endpoint.send("POST", message, _headers(connection)))

    def end(self, connection: Connection) -> None:
        """End a session at the upstream, in the background. Does nothing for a connection without one."""
        if connection.session_id is not None:
            self._endpoint.spawn(self._endpoint.send("DELETE", b"", _headers(connection)))

    async def is_known(self, connection: Connection) -> bool:
        """Ask the upstream whether it knows a session. Raises UpstreamUnavailable: it does not say."""
        try:
            await self.request(connection, "ping", {})
        except NotAccepted:
            return False
        except UpstreamRefused:
            return True
        except OutcomeUnknown as error:
            # That of the call is known: the upstream did not accept it.
            raise UpstreamUnavailable(str(error)) from None
        return True

    async def is_modern(self) -> bool:
        """Ask whether the upstream has the version 2026-07-28. Raises UpstreamError if it does not answer."""
        try:
            return is_modern(await self.request(Connection(MODERN_VERSION), "server/discover", {}))
        except UpstreamError as error:
            if not _shows_another_era(error):
                raise
            return False

    async def open_session(self) -> Connection:
        """Do the handshake of the versions before 2026-07-28. A stateless upstream gives no session.

        Raises:
            NotAccepted: it may be an upstream of another version now.
            UpstreamUnavailable: there is no session. No tool was called, whatever the reason.
        """
        body = write_request(request_id := _new_id(), "initialize", initialize_params())
        try:
            reply = await self._endpoint.request(Outgoing(request_id, body, _COMMON))
            if reply.session_id is not None and _SESSION_ID.fullmatch(reply.session_id) is None:
                raise UpstreamUnavailable("the upstream sent a session id that is not visible ASCII characters")
            connection = Connection(negotiated_version(reply.result), reply.session_id)
            try:
                await self._endpoint.send("POST", write_notification("notifications/initialized"), _headers(connection))
            except BaseException:
                self.end(connection)
                raise
        except OutcomeUnknown as error:
            raise UpstreamUnavailable(str(error)) from error
        except UpstreamRefused as error:
            # A server of 2026-07-28 has no such method.
            raise NotAccepted(400, str(error)) from error
        return connection


def _new_id() -> int:
    """Return the id of a request. An upstream cannot foresee it, and so cannot answer a request that it has not seen.

    Every parser reads it exactly.
    """
    return secrets.randbits(52)


def _headers(connection: Connection, method: str | None = None) -> Headers:
    headers = [*_COMMON, ("MCP-Protocol-Version", connection.protocol_version)]
    if connection.session_id is not None:
        headers.append(("Mcp-Session-Id", connection.session_id))
    if method is not None and connection.protocol_version == MODERN_VERSION:
        headers.append(("Mcp-Method", method))
    return headers


def _shows_another_era(error: UpstreamError) -> bool:
    """Tell whether a server that refuses `server/discover` in this way may be one of an earlier version.

    An outage says nothing of the version: without an answer, with 401, 403 or 429, or with a status of 500 and above.
    """
    if isinstance(error, UnexpectedStatus):
        return 400 <= error.status < 500 and error.status != 429
    return isinstance(error, NotAccepted | UpstreamRefused) or (
        isinstance(error, OutcomeUnknown) and not isinstance(error, NoAnswer)
    )
