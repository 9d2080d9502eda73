"""A program that speaks MCP over its standard streams, without the SDK, so that it starts fast and can misbehave.

    python -I -S stdio_program.py [OPTION ...]

Options: `legacy` knows no `server/discover`; `silent` does not answer it, and `refuse-initialize` makes up for a slow
answer to it; `die-at-probe` ends when it receives it; `no-version` speaks a version that nobody knows; `mute` answers
nothing; `keep` ignores SIGTERM and the end of its standard input.
"""

import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

OPTIONS = frozenset(sys.argv[1:])
cancelled: list[int] = []
received: list[dict[str, Any]] = []


def send(message: dict[str, Any]) -> None:
    write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")


def write(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def answer(number: int, result: dict[str, Any]) -> None:
    send({"id": number, "result": result})


def refuse(number: int, code: int) -> None:
    send({"id": number, "error": {"code": code, "message": "secret of the program"}})


def describe() -> dict[str, Any]:
    own = Path("/proc/self")
    status = dict(line.split(":\t", 1) for line in (own / "status").read_text().splitlines())
    return {
        "pid": os.getpid(),
        "pgid": os.getpgid(0),
        "sid": os.getsid(0),
        # Python itself adds a variable to `os.environ`.
        "environment": dict(line.split("=", 1) for line in (own / "environ").read_text().split("\0")[:-1]),
        "folder": str(Path.cwd()),
        "ids": [*os.getresuid(), *os.getresgid(), *os.getgroups()],
        "core": list(resource.getrlimit(resource.RLIMIT_CORE)),
        "limit": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        # Without the one that lists them.
        "descriptors": sorted(int(path.name) for path in (own / "fd").iterdir())[:-1],
        "ignored": int(status["SigIgn"], 16),
        "children": (own / "task" / str(os.getpid()) / "children").read_text().split(),
        "arguments": sys.argv[1:],
    }


def fork(*, leave: bool = False) -> int:
    """Start a process that ignores SIGTERM, and keeps the pipes open."""
    if pid := os.fork():
        return pid
    if leave:
        os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.pause()
    os._exit(0)


def count(number: int, params: dict[str, Any]) -> None:
    token = params["_meta"]["progressToken"]
    for step in range(1, params["arguments"].get("steps", 3) + 1):
        progress = {"progressToken": token, "progress": step, "total": 3, "message": f"step {step}"}
        send({"method": "notifications/progress", "params": progress})
    answer(number, {"content": []})


def raw(number: int, params: dict[str, Any]) -> None:
    """Write exactly this text, in which ID stands for the id of the request."""
    text = params["arguments"]["text"].replace("ID", str(number))
    write(text.encode("latin-1") * params["arguments"].get("times", 1))


def complain(number: int, params: dict[str, Any]) -> None:
    os.write(2, params["arguments"]["text"].encode() * params["arguments"].get("times", 1))
    answer(number, {"content": []})


def fork_and_answer(number: int, params: dict[str, Any]) -> None:
    answer(number, {"structuredContent": {"pid": fork(leave=params["arguments"].get("leave", False))}})


def fork_and_die(_: int, __: dict[str, Any]) -> None:
    fork()
    os._exit(3)


def ask(_: int, __: dict[str, Any]) -> None:
    for asked, method in (("a", "ping"), (7, "sampling/createMessage")):
        send({"id": asked, "method": method})


def read_no_more(number: int, _: dict[str, Any]) -> None:
    answer(number, {"content": []})
    signal.pause()


def close(number: int, params: dict[str, Any]) -> None:
    descriptor = params["arguments"]["descriptor"]
    os.close(descriptor)
    if descriptor == 0:
        answer(number, {"content": []})
    signal.pause()


TOOLS: dict[str, Callable[[int, dict[str, Any]], None]] = {
    "describe": lambda number, _: answer(number, {"structuredContent": describe()}),
    "echo": lambda number, params: answer(number, {"structuredContent": params}),
    "count": count,
    "cancelled": lambda number, _: answer(number, {"structuredContent": {"cancelled": cancelled}}),
    "received": lambda number, _: answer(number, {"structuredContent": {"received": received}}),
    "wait": lambda *_: None,
    "die": lambda *_: os._exit(3),
    "raw": raw,
    "complain": complain,
    "fork": fork_and_answer,
    "fork and die": fork_and_die,
    "ask": ask,
    "read no more": read_no_more,
    "close": close,
}


def handle(message: dict[str, Any]) -> None:
    number, method, params = message.get("id"), message.get("method"), message.get("params", {})
    received.append(message)
    if method == "server/discover":
        discover(number)
    elif method == "initialize" and "refuse-initialize" in OPTIONS:
        refuse(number, -32022)
    elif method == "initialize":
        version = "1999-01-01" if "no-version" in OPTIONS else params["protocolVersion"]
        answer(number, {"protocolVersion": version, "capabilities": {}, "serverInfo": {"name": "n", "version": "1"}})
    elif method == "tools/list":
        tools = [{"name": f"tool{page}", "inputSchema": {"type": "object"}} for page in range(2)]
        page = int(params.get("cursor", 0))
        answer(number, {"tools": [tools[page]], **({} if page else {"nextCursor": "1"})})
    elif method == "tools/call":
        TOOLS[params["name"]](number, params)
    elif method == "notifications/cancelled":
        cancelled.append(params["requestId"])


def discover(number: int) -> None:
    if "die-at-probe" in OPTIONS:
        os._exit(4)
    if "silent" in OPTIONS and sum(message.get("method") == "server/discover" for message in received) == 1:
        return
    if "legacy" in OPTIONS or "no-version" in OPTIONS:
        refuse(number, -32601)
    else:
        answer(number, {"supportedVersions": ["2026-07-28"], "capabilities": {}})


def main() -> None:
    if "keep" in OPTIONS:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    for line in sys.stdin.buffer:
        if "mute" not in OPTIONS:
            handle(json.loads(line))
    if "keep" in OPTIONS:
        signal.pause()


if __name__ == "__main__":
    main()
