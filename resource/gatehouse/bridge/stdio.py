"""Standard input and output as an MCP transport that answers every line it cannot read.

The SDK's transport drops such a line, and the desktop client waits for its response forever. Responses are the
exception: the bridge sends no requests, and an error in answer to an error could repeat without end.
"""

import json
import os
import re
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, BinaryIO, Final

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from mcp.shared.message import SessionMessage
from mcp_types import (
    INVALID_PARAMS,
    INVALID_REQUEST,
    PARSE_ERROR,
    ErrorData,
    JSONRPCError,
    JSONRPCNotification,
    JSONRPCRequest,
    JSONRPCResponse,
    RequestId,
)

from gatehouse.bridge.redaction import SentSecrets
from gatehouse.shared.protocol.encoding import MAX_JSON_DEPTH, InvalidJson, format_json, parse_json

MAX_LINE: Final = 4 * 1024 * 1024
"""Bytes of a message from the desktop client, without its line feed."""

_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_STDOUT: Final = 1
_STDERR: Final = 2
_DISCARD: Final = 64 * 1024

_ID = rb'"id"\s*:\s*(-?[0-9]{1,19}|"[^"\\\x00-\x1f]{0,128}")\s*'
# Desktop clients write the id before params, or after them as the last member.
_ID_FIRST = re.compile(rb'\s*\{\s*(?:"(?:jsonrpc|method)"\s*:\s*"[^"\\]{0,128}"\s*,\s*){0,2}' + _ID + rb",")
_ID_LAST = re.compile(rb",\s*" + _ID + rb"\}\s*\Z")

Incoming = MemoryObjectReceiveStream[SessionMessage | Exception]
Outgoing = MemoryObjectSendStream[SessionMessage]


class InvalidLine(Exception):
    """A line is not a request or notification. The text is public and contains no input."""

    def __init__(self, code: int, message: str, request_id: RequestId | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.request_id = request_id
        """None if the line has no valid id."""


@contextmanager
def standard_streams() -> Iterator[tuple[BinaryIO, BinaryIO]]:
    """Yield standard input and output, and redirect to standard error what other code prints meanwhile."""
    with os.fdopen(os.dup(_STDOUT), "wb") as sink:
        os.dup2(_STDERR, _STDOUT)
        try:
            yield sys.stdin.buffer, sink
        finally:
            os.dup2(sink.fileno(), _STDOUT)


@asynccontextmanager
async def stdio_transport(
    source: BinaryIO, sink: BinaryIO, secrets: SentSecrets
) -> AsyncIterator[tuple[Incoming, Outgoing]]:
    """Yield the streams for an MCP server; the first ends when the source does.

    Args:
        source: one JSON-RPC message per line.
        sink: receives one message per line, without secrets.
        secrets: masked in every message that is sent.
    """
    to_server, incoming = anyio.create_memory_object_stream[SessionMessage | Exception](0)
    outgoing, to_client = anyio.create_memory_object_stream[SessionMessage](0)
    async with anyio.create_task_group() as group:
        group.start_soon(_read, source, to_server, outgoing.clone())
        group.start_soon(_write, sink, to_client, secrets)
        async with incoming, outgoing:
            yield incoming, outgoing


async def _read(
    source: BinaryIO, to_server: MemoryObjectSendStream[SessionMessage | Exception], answers: Outgoing
) -> None:
    async with to_server, answers:
        while line := await anyio.to_thread.run_sync(read_line, source):
            try:
                message = parse_line(line)
            except InvalidLine as error:
                reason = ErrorData(code=error.code, message=str(error))
                answer = JSONRPCError(jsonrpc="2.0", id=error.request_id, error=reason)
                await answers.send(SessionMessage(answer))
            else:
                if message is not None:
                    await to_server.send(SessionMessage(message))


async def _write(sink: BinaryIO, messages: MemoryObjectReceiveStream[SessionMessage], secrets: SentSecrets) -> None:
    def write(line: bytes) -> None:
        sink.write(line)
        sink.flush()

    async with messages:
        async for item in messages:
            message = item.message
            members = message.model_dump(by_alias=True, exclude_unset=True, mode="json")
            failed = isinstance(message, JSONRPCError) or (
                isinstance(message, JSONRPCResponse) and message.result.get("isError") is True
            )
            text = json.dumps(secrets.mask_values(members, patterns=failed), ensure_ascii=False)
            await anyio.to_thread.run_sync(write, text.encode() + b"\n")


def read_line(source: BinaryIO) -> bytes:
    """Return the next line with its line feed; b"" at the end. Of a line that is too long, only both ends are kept."""
    line = source.readline(MAX_LINE + 1)
    if len(line) <= MAX_LINE or line.endswith(b"\n"):
        return line
    head, tail = line, b""
    while not tail.endswith(b"\n") and (part := source.readline(_DISCARD)):
        tail = tail[-_DISCARD:] + part
    return head + tail


def parse_line(line: bytes) -> JSONRPCRequest | JSONRPCNotification | None:
    """Return the message on a line; None for an empty line or a response.

    A byte order mark at the start of a line is ignored (RFC 8259 section 8.1).

    Raises:
        InvalidLine: not strict JSON, nested deeper than MAX_JSON_DEPTH, a batch (removed in MCP 2025-06-18),
            longer than MAX_LINE, or not JSON-RPC 2.0.
    """
    line = line.strip().removeprefix(_BYTE_ORDER_MARK)
    if not line:
        return None
    if len(line) > MAX_LINE:
        raise InvalidLine(INVALID_REQUEST, f"The message is longer than {MAX_LINE // 1024} KiB.", _id_at_an_end(line))
    try:
        message = parse_json(line)
        if line.count(b"{") + line.count(b"[") > MAX_JSON_DEPTH:
            # Raises for a message that is nested too deep to be forwarded.
            format_json(message)
    except InvalidJson as error:
        raise InvalidLine(PARSE_ERROR, f"The line cannot be read. {error}", _id_of_unreadable(line)) from None
    if not isinstance(message, dict):
        raise InvalidLine(INVALID_REQUEST, "Send one JSON-RPC object per line; batches are not supported.")
    if "method" not in message and not message.keys().isdisjoint({"result", "error"}):
        return None
    return _parse_message(message)


def _parse_message(message: dict[str, Any]) -> JSONRPCRequest | JSONRPCNotification:
    request_id = _valid_id(message)
    if "id" in message and request_id is None:
        raise InvalidLine(INVALID_REQUEST, "id must be a string or a whole number.")
    method, params = message.get("method"), message.get("params")
    if (
        message.get("jsonrpc") != "2.0"
        or not isinstance(method, str)
        or not message.keys().isdisjoint({"result", "error"})
    ):
        raise InvalidLine(INVALID_REQUEST, 'Send a JSON-RPC request: "jsonrpc": "2.0", a method, an id.', request_id)
    if not isinstance(params, dict | None):
        raise InvalidLine(INVALID_PARAMS, "params must be an object.", request_id)
    if request_id is None:
        return JSONRPCNotification(jsonrpc="2.0", method=method, params=params)
    return JSONRPCRequest(jsonrpc="2.0", id=request_id, method=method, params=params)


def _valid_id(message: dict[str, Any]) -> RequestId | None:
    request_id = message.get("id")
    return request_id if isinstance(request_id, str | int) and not isinstance(request_id, bool) else None


def _id_of_unreadable(line: bytes) -> RequestId | None:
    """Return the id of a line that a lenient parser can read; None if there is none, or more than one."""
    ids: list[RequestId | None] = []

    def keep(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        ids[:] = [_valid_id({name: value}) for name, value in pairs if name == "id"]
        return dict(pairs)

    try:
        message = json.loads(line.decode(errors="replace"), object_pairs_hook=keep)
    except (ValueError, RecursionError):
        return _id_at_an_end(line)
    # The outermost object is the last one that the parser completes.
    if not isinstance(message, dict) or len(ids) != 1:
        return None
    (request_id,) = ids
    # Other characters may be what is wrong with the line.
    return None if isinstance(request_id, str) and not request_id.isascii() else request_id


def _id_at_an_end(line: bytes) -> RequestId | None:
    """Return the id at the start or at the end of a line that is not parsed."""
    found = {match[1] for match in (_ID_FIRST.match(line), _ID_LAST.search(line, max(0, len(line) - 256))) if match}
    if len(found) != 1:
        return None
    try:
        request_id = json.loads(found.pop())
    except ValueError:
        return None
    return request_id if isinstance(request_id, str | int) else None
