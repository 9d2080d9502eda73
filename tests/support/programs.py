"""Settings of stdio upstreams that run `stdio_program.py`, calls for them, and a look at their processes."""

import os
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio

from gatehouse.resourceserver.catalogue.policy_file import StdioTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.resourceserver.upstream.upstream import Notify, ToolCall
from gatehouse.shared.protocol.claims import AccessClaims

SCRIPT = str(Path(__file__).with_name("stdio_program.py"))
COMMAND = (sys.executable, "-I", "-S", SCRIPT)
GRACE = 0.1
"""Seconds that a program of the tests has to end, twice."""


def transport(*options: str, command: tuple[str, ...] = COMMAND, **changes: Any) -> StdioTransport:
    members = {"environment": (), "directory": None, "user": None, "shared": False, **changes}
    return StdioTransport(command=(*command, *options), **members)


def settings(of: StdioTransport, **changes: Any) -> UpstreamSettings:
    members = {
        "timeout": 60.0,
        "max_result": 100_000,
        "max_sessions": 10,
        "idle_timeout": 600.0,
        "caller_identity": False,
        **changes,
    }
    return UpstreamSettings(transport=of, **members)


def make_call(
    tool: str, caller: str = "alice", notify: Notify | None = None, meta: Any = None, **arguments: Any
) -> ToolCall:
    claims = AccessClaims(
        iss="https://issuer.example",
        sub=caller,
        client_id=caller,
        aud="https://resource.example",
        iat=0,
        exp=1,
        jti="j",
        scope=frozenset(),
    )
    return ToolCall(claims, {"name": tool, "inputSchema": {}}, arguments, meta or {}, notify)


@asynccontextmanager
async def running(*options: str, **changes: Any) -> AsyncIterator[StdioUpstream]:
    """Run an upstream. Changes are of the transport, of the settings, or arguments of the upstream."""
    own = {name: changes.pop(name) for name in ("monotonic", "variables") if name in changes}
    of_transport = {
        name: changes.pop(name) for name in ("command", "environment", "directory", "user", "shared") if name in changes
    }
    upstream = StdioUpstream(settings(transport(*options, **of_transport), **changes), grace=GRACE, **own)
    async with upstream.running():
        yield upstream


def exists(pid: int) -> bool:
    """Tell whether a process runs. One that has ended and was not waited for does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0]
    except OSError:
        return False
    return state != "Z"


def members(group: int) -> list[int]:
    """Return the running processes of a process group."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ProcessLookupError):
            if os.getpgid(int(path.name)) == group and exists(int(path.name)):
                found.append(int(path.name))
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Wait for another process."""
    with anyio.fail_after(30):
        while not condition():  # noqa: ASYNC110 - it announces no change
            await anyio.sleep(0.01)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
