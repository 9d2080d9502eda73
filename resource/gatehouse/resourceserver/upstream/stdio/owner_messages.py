"""The messages between the workers of a node and the owner of its programs: JSON objects, each after its length.

Both sides run as the same user, and neither passes on the token of a caller.

    worker: {"id": 7, "call": {...}}, {"id": 8, "list": true}, {"cancel": 7}
    owner: {"id": 7, "progress": [1, 3, "text"]}, {"id": 7, "result": {...}}, {"id": 8, "error": {...}}
"""

import asyncio
import os
import socket
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from gatehouse.resourceserver.catalogue.policy_file import StdioTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.stdio.launch import program_variables, stdio_transport
from gatehouse.resourceserver.upstream.upstream import (
    Notify,
    OutcomeUnknown,
    ToolCall,
    UpstreamBusy,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.encoding import compact_json, parse_json

EXPANSION: Final = 6
"""A message that was parsed is at most so many times as long when it is written again: DEL, one byte, becomes an escape
of six. `1e15` becomes a number with 18 characters."""

_LENGTH: Final = 4
"""Bytes of the length of a message, the most significant one first."""

_CREDENTIALS: Final = "3i"
"""struct ucred: the ids of process, user and group."""

_ERRORS: Final[Mapping[str, type[UpstreamError]]] = {
    error.__name__: error for error in (UpstreamUnavailable, UpstreamBusy, OutcomeUnknown)
}


class InvalidFrame(Exception):
    """The other side sent something else than a message, or one that is too long."""


def write_frame(message: Mapping[str, Any]) -> bytes:
    """Return a message as it is sent."""
    text = compact_json(message).encode()
    return len(text).to_bytes(_LENGTH) + text


async def read_frame(reader: asyncio.StreamReader, limit: int) -> dict[str, Any] | None:
    """Return the next message; None if the other side has closed the connection.

    Raises:
        InvalidFrame: it is not a JSON object, or longer than `limit` bytes.
    """
    try:
        length = int.from_bytes(await reader.readexactly(_LENGTH))
        if length > limit:
            raise InvalidFrame
        message = parse_json(await reader.readexactly(length))
    except (asyncio.IncompleteReadError, OSError):
        return None
    except ValueError:
        raise InvalidFrame from None
    if not isinstance(message, dict):
        raise InvalidFrame
    return message


def is_same_user(connection: socket.socket) -> bool:
    """Tell whether the process at the other end of a Unix socket runs as the user of this one."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize(_CREDENTIALS))
    _, user, _ = struct.unpack(_CREDENTIALS, credentials)
    return bool(user == os.geteuid())


def write_error(error: UpstreamError) -> dict[str, Any]:
    """Return an error as a member of a message."""
    if isinstance(error, UpstreamRefused):
        return {"code": error.code}
    return {"name": type(error).__name__, "text": str(error)}


def read_error(members: Mapping[str, Any]) -> UpstreamError:
    """Return the error that `write_error` wrote."""
    if "code" in members:
        return UpstreamRefused(members["code"])
    return _ERRORS[members["name"]](members["text"])


def write_call(call: ToolCall) -> dict[str, Any]:
    """Return a call as a member of a message: of its claims and of its tool, only what the owner needs."""
    return {
        "client_id": call.claims.client_id,
        "sub": call.claims.sub,
        "jti": call.claims.jti,
        "tool": call.tool["name"],
        "arguments": call.arguments,
        "meta": call.meta,
        "progress": call.notify is not None,
    }


def read_call(members: Mapping[str, Any], notify: Notify) -> ToolCall:
    """Return the call that `write_call` wrote. Claims that the owner does not need are empty."""
    claims = AccessClaims(
        iss="",
        sub=members["sub"],
        client_id=members["client_id"],
        aud="",
        iat=0,
        exp=0,
        jti=members["jti"],
        scope=frozenset(),
    )
    return ToolCall(
        claims=claims,
        tool={"name": members["tool"]},
        arguments=members["arguments"],
        meta=members["meta"],
        notify=notify if members["progress"] else None,
    )


def write_settings(settings: UpstreamSettings, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return the settings of a stdio upstream, and the variables of its programs, as JSON."""
    transport = stdio_transport(settings)
    return {
        "command": transport.command,
        "directory": None if transport.directory is None else str(transport.directory),
        "user": transport.user,
        "shared": transport.shared,
        "timeout": settings.timeout,
        "max_result": settings.max_result,
        "max_sessions": settings.max_sessions,
        "idle_timeout": settings.idle_timeout,
        "caller_identity": settings.caller_identity,
        "variables": program_variables(transport, variables),
    }


def read_settings(members: Mapping[str, Any]) -> tuple[UpstreamSettings, dict[str, str]]:
    """Return the settings that `write_settings` wrote, and the variables of the programs."""
    variables, directory = members["variables"], members["directory"]
    transport = StdioTransport(
        command=tuple(members["command"]),
        environment=tuple(variables),
        directory=None if directory is None else Path(directory),
        user=members["user"],
        shared=members["shared"],
    )
    settings = UpstreamSettings(
        transport=transport,
        timeout=members["timeout"],
        max_result=members["max_result"],
        max_sessions=members["max_sessions"],
        idle_timeout=members["idle_timeout"],
        caller_identity=members["caller_identity"],
    )
    return settings, variables
