"""Where an admitted request goes: most calls of tools to dispatch directly, everything else through the SDK.

The SDK starts a session, with its tasks and streams, for each request of the versions up to 2025-11-25, and encodes
each result several times. A call that needs none of it is validated by the SDK's public validators and answered with
the bytes that the SDK would send. A call that is irregular in any way goes through the SDK, which refuses it in its own
words (docs/decisions/0017-direct-calls.md).
"""

import asyncio
import marshal
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Final, cast

from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from mcp.shared.inbound import (
    ERROR_CODE_HTTP_STATUS,
    MCP_METHOD_HEADER,
    MCP_NAME_HEADER,
    MCP_PROTOCOL_VERSION_HEADER,
    InboundLadderRejection,
    classify_inbound_request,
    x_mcp_header_map,
)
from mcp_types import SERVER_INFO_META_KEY, CallToolRequestParams, ErrorData
from mcp_types.methods import validate_client_request
from pydantic import ValidationError
from pydantic_core import to_json

from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.gate import AdmittedRequest
from gatehouse.resourceserver.bearer.mcp_request import STREAM, Message
from gatehouse.resourceserver.bearer.refusal import recording
from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.dispatch.payload import Answer
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.resourceserver.http import JSON, Receive, Response
from gatehouse.resourceserver.http import Message as ASGIMessage
from gatehouse.shared.protocol.encoding import compact_json
from gatehouse.shared.service.audit.writer import AuditWriter
from gatehouse.shared.service.cors import Header

_METHOD: Final = "tools/call"

_CONTENT_TYPE: Final = (b"content-type", JSON.encode())

_CANONICAL: Final = (_CONTENT_TYPE, (b"accept", f"{JSON}, {STREAM}".encode()))

_ROUTING_HEADERS: Final = tuple(
    name.encode() for name in (MCP_PROTOCOL_VERSION_HEADER, MCP_METHOD_HEADER, MCP_NAME_HEADER)
)

_MAX_BRACKETS: Final = 200
"""Objects and arrays of a body that is certainly read alike by all parsers: one of the SDK's reads no deeper."""

_MAX_CACHED: Final = 2048
"""Bytes of a body whose validation is cached."""

_MAX_VALID: Final = 256
"""Combinations that are cached."""


class _Irregular(Exception):
    """The SDK refuses the call."""


@dataclass(frozen=True, slots=True)
class RequestRouter:
    """Answers the requests that the gate admitted."""

    direct: frozenset[str]
    """The tools that are called directly."""
    tools: ToolDispatch
    """The dispatch of the direct calls, whose handlers the SDK's server also has."""
    catalogue: Catalogue
    sessions: StreamableHTTPSessionManager
    """Answers with one JSON object."""
    streams: StreamableHTTPSessionManager
    """Answers with a stream of events."""
    audit: AuditWriter
    meta: bytes
    """What `result_meta` returns."""
    calls: set[asyncio.Task[Any]] = field(default_factory=set, init=False)
    """The tasks of direct calls in flight."""
    valid: dict[tuple[str, tuple[bytes | None, ...] | None, bytes], None] = field(default_factory=dict, init=False)
    """The last combinations of version, routing headers and parameters that were valid, as bytes. Apart from the values
    that `_without_values` replaces, many agents send the same ones with every call of a tool."""
    ended: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    """Set whenever a direct call ends."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator[None]:
        """Serve requests until the block ends. Direct calls in flight are then cancelled, and each leaves its event."""
        try:
            yield
        finally:
            for call in self.calls:
                call.cancel()
            while self.calls:
                self.ended.clear()
                await self.ended.wait()

    async def answer(self, admitted: AdmittedRequest) -> Response | None:
        """Answer a request. None if the SDK has sent the response."""
        message = admitted.message
        if message.tool_name is None or not self._is_direct(admitted):
            await self._through_sdk(admitted)
            return None
        # An ASGI server serves each request in a task.
        call = cast("asyncio.Task[Any]", asyncio.current_task())
        self.calls.add(call)
        try:
            answer = await self.tools.call(admitted.verified, message.tool_name, message.params.get("arguments") or {})
        except MCPError as refused:
            return _refusal(admitted, refused.error)
        finally:
            self.calls.remove(call)
            self.ended.set()
        return Response(200, self._encode(admitted, answer), [_CONTENT_TYPE])

    def _is_direct(self, admitted: AdmittedRequest) -> bool:
        """Tell whether a request is served without the SDK: a valid call of a tool that needs nothing of it."""
        message, body, headers = admitted.message, admitted.body, admitted.headers
        if message.tool_name not in self.direct or body.count(b"{") + body.count(b"[") > _MAX_BRACKETS:
            return False
        routing = None if headers.handshake else tuple(map(admitted.http.headers.get, _ROUTING_HEADERS))
        try:
            if len(body) <= _MAX_CACHED:
                self._validate_once(headers.version, routing, _without_values(message))
            else:
                _validate(headers.version, routing, message.params)
        except _Irregular:
            return False
        return True

    def _validate_once(self, version: str, routing: tuple[bytes | None, ...] | None, params: Mapping[str, Any]) -> None:
        """Do what `_validate` does, unless the same was valid before."""
        # Marshal takes a third of the time of JSON. Version 2 has no references, so equal bytes mean equal values.
        key = version, routing, marshal.dumps(cast("dict[str, Any]", params), 2)
        if key in self.valid:
            return
        _validate(version, routing, params)
        if len(self.valid) >= _MAX_VALID:
            del self.valid[next(iter(self.valid))]
        self.valid[key] = None

    def _encode(self, admitted: AdmittedRequest, answer: Answer) -> bytes:
        """Return the bytes that the SDK would send."""
        handshake = admitted.headers.handshake
        encode = _encoder(admitted)
        parts = [
            *(b'{"jsonrpc":"2.0","id":', encode(admitted.message.id)),
            *(b',"result":{"content":[{"text":', encode(answer.text), b',"type":"text"}],"isError":'),
            b"true" if answer.is_error else b"false",
        ]
        if not handshake:
            parts.append(b',"resultType":"complete"')
        if answer.content is not None:
            # Python's encoder has written the text of the content already.
            text_is_content = not handshake and answer.text.isascii()
            parts += [b',"structuredContent":', answer.text.encode() if text_is_content else encode(answer.content)]
        if not handshake:
            parts += [b',"_meta":', self.meta]
        return b"".join([*parts, b"}}"])

    async def _through_sdk(self, admitted: AdmittedRequest) -> None:
        http = admitted.http
        verified_request.attach(http.scope, admitted.verified)
        http.scope["headers"] = _canonical(http.scope["headers"])
        streams = admitted.headers.accepts_stream and self._can_stream(admitted.message)
        manager = self.streams if streams else self.sessions
        send = recording(self.audit, admitted.received, http.send)
        await manager.handle_request(http.scope, _replay(admitted.body, http.receive), send)

    def _can_stream(self, message: Message) -> bool:
        """Tell whether the caller requests the progress of a streaming tool."""
        tool = self.catalogue.tools.get(message.tool_name or "")
        return message.progress_token is not None and tool is not None and tool.streaming


def _refusal(admitted: AdmittedRequest, error: ErrorData) -> Response:
    """Return the response that the SDK would send to a call that dispatch refuses, and has recorded.

    The gate decides by the same policy, so it refuses such a call first, with a status and a challenge of its own. This
    one is for a gate that is mistaken.
    """
    admitted.verified.fail(error.code)
    status = 200 if admitted.headers.handshake else ERROR_CODE_HTTP_STATUS.get(error.code, 200)
    message = {"jsonrpc": "2.0", "id": admitted.message.id, "error": error.model_dump(exclude_none=True)}
    return Response(status, _encoder(admitted)(message), [_CONTENT_TYPE])


def _encoder(admitted: AdmittedRequest) -> Callable[[object], bytes]:
    """Return the SDK's encoder of JSON, which depends on the protocol version."""
    return to_json if admitted.headers.handshake else _encode_in_ascii


def direct_tools(catalogue: Catalogue) -> frozenset[str]:
    """Return the tools that may be called directly.

    The SDK tells a streaming or forwarded tool about its request, and checks the headers that repeat an argument
    (`x-mcp-header`). A tool that writes outside of the call's transaction runs in a task of the SDK.
    """
    return frozenset(
        tool.name
        for tool in catalogue.tools.values()
        if tool.transactional and not tool.needs_context
        if not x_mcp_header_map(catalogue.descriptions[tool.name].input_schema)
    )


def _without_values(message: Message) -> Mapping[str, Any]:
    """Return the parameters of a call, with values in place of those that change with each call and are valid."""
    params = message.params
    if params.get("arguments"):
        # To the SDK's validators, any object is valid here.
        params = {**params, "arguments": {}}
    if message.progress_token is not None:
        params = {**params, "_meta": {**params["_meta"], "progressToken": 0}}
    return params


def _validate(version: str, routing: tuple[bytes | None, ...] | None, params: Mapping[str, Any]) -> None:
    """Validate a call as the SDK does.

    Args:
        version: the protocol version.
        routing: the values of the routing headers. None for the versions up to 2025-11-25, in which they are not
            compared with the body.
        params: the parameters.

    Raises:
        _Irregular: one of the SDK's validators rejects it.
    """
    call = {"method": _METHOD, "params": params}
    if routing is not None:
        lines = zip(_ROUTING_HEADERS, routing, strict=True)
        headers = {name.decode(): value.decode("latin-1") for name, value in lines if value is not None}
        if isinstance(classify_inbound_request(call, headers=headers), InboundLadderRejection):
            raise _Irregular
    try:
        validate_client_request(_METHOD, version, params)
        CallToolRequestParams.model_validate(params, by_name=False)
    except ValidationError:
        raise _Irregular from None


def result_meta(server_info: Mapping[str, Any]) -> bytes:
    """Return the JSON of `_meta` in a result of MCP 2026-07-28: what the SDK says of the server."""
    return _encode_in_ascii({SERVER_INFO_META_KEY: server_info})


def _encode_in_ascii(value: object) -> bytes:
    return compact_json(value).encode()


def _canonical(headers: Iterable[Header]) -> list[Header]:
    """Return accepted headers in a form that the SDK accepts: it compares these two by case, or reads one line."""
    replaced = {name for name, _ in _CANONICAL}
    return [*((name, value) for name, value in headers if name not in replaced), *_CANONICAL]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a receive function that replays the body once, then passes on messages such as a disconnect."""
    messages: list[ASGIMessage] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> ASGIMessage:
        return messages.pop() if messages else await receive()

    return next_message
