"""Runs MCP clients and servers of tests/interop as processes: clients by a line protocol, or by their command line."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, free_port

from support.waiting import wait_until

FOLDER = Path(__file__).parents[1] / "interop"
NODE_MODULES = FOLDER / "node_modules"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
OLDEST_NODE = 22
TIMEOUT = 120.0
"""Seconds after which a client process is killed."""

SCOPES = "io.gatehouse/scopes"
"""The member of a tool's `_meta` with the scopes that the tool requires."""


@functools.cache
def _missing(node: str | None) -> str | None:
    """Return why the Node.js clients cannot run; None if they can."""
    if not (NODE_MODULES / ".installed").exists():
        return "the Node.js clients are not installed; run `make test-interop` with npm installed"
    if node is None:
        return "Node.js is not installed"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return (
        None
        if int(version.strip("v\n").split(".")[0]) >= OLDEST_NODE
        else f"Node.js {OLDEST_NODE} or later is required"
    )


def node() -> str:
    """Return the path of the Node.js binary. Without one, skip the test, or fail it if `CI=true`."""
    pinned = NODE_MODULES / ".bin" / "node"  # Linux on x64; other systems use their own Node.js
    found = str(pinned) if pinned.exists() else shutil.which("node")
    if missing := _missing(found):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return str(found)


def unlimited_token(stack: LocalStack, *options: str) -> str:
    """Return a token of a new client with every scope. `options` are those of `authserver client create`."""
    declared = stack.run_json("resourceserver", "tools")["scopes"]
    client = stack.create_client("unlimited", " ".join(each["scope"] for each in declared), *options)
    issue = ("token", "issue", "--client", client["client_id"], "--resource", stack.resource)
    issued: str = stack.run_json("authserver", *issue)["access_token"]
    return issued


def run(command: list[str], home: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command-line client with `home` as its home and working directory, and with further variables."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1", **variables}
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


@dataclass
class Session:
    """A session of one client process."""

    process: subprocess.Popen[str]
    errors: Path
    protocol: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    exchanges: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and status of every HTTP exchange; set when the session is closed."""

    def write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client process has exited:\n{self.errors.read_text(encoding='utf-8')}"
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool. Return `is_error`, `structured_content` and `text`, or the name of the exception as `raised`."""
        self.write({"tool": tool, "arguments": arguments})
        return self.read()

    def result(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the structured content of a successful call."""
        answer = self.call(tool, **arguments)
        assert answer.get("is_error") is False, answer
        content: dict[str, Any] = answer["structured_content"]
        return content

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.exchanges = [(method, path, status) for method, path, status in self.read()["exchanges"]]
        assert self.process.wait() == 0, self.errors.read_text(encoding="utf-8")


@contextmanager
def session(
    program: str, stack: LocalStack, credentials: dict[str, Any], protocol: str, errors: Path
) -> Iterator[Session]:
    """Open a session with the output of `authserver client create` as credentials; close it at the end."""
    interpreter = sys.executable if program.endswith(".py") else node()
    agent = {"resource": stack.resource, "issuer": stack.issuer, "protocol": protocol, **credentials}
    with (
        errors.open("w", encoding="utf-8") as stderr,
        subprocess.Popen(
            [interpreter, str(FOLDER / "clients" / program)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        try:
            opened = Session(process, errors)
            opened.write(agent)
            greeting = opened.read()
            opened.protocol, opened.tools = greeting["protocol"], greeting["tools"]
            yield opened
            opened.close()
        finally:
            watchdog.cancel()
            process.kill()


def call_until_granted(call: Callable[[], dict[str, Any]], between: Callable[[], Any]) -> dict[str, Any]:
    """Repeat a call until a grant takes effect, which the token endpoint delays by at most a second.

    `between` calls another tool. Version 1 of the TypeScript SDK steps up again only after such a call.
    """
    deadline = time.monotonic() + 10
    while "raised" in (answer := call()):
        assert time.monotonic() < deadline, answer
        between()
    assert answer["is_error"] is False, answer
    return answer


@contextmanager
def serving(program: str, *arguments: str, log: Path) -> Iterator[str]:
    """Run a server of tests/interop/servers on a port of its own until the block ends, and yield its URL.

    Its arguments are the port and `arguments`, and it writes to `log`.
    """
    interpreter, port = sys.executable if program.endswith(".py") else node(), free_port()
    command = [interpreter, str(FOLDER / "servers" / program), str(port), *arguments]
    with log.open("w", encoding="utf-8") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:

        def answered() -> bool:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        try:
            wait_until(answered)
            yield f"http://127.0.0.1:{port}/mcp"
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
