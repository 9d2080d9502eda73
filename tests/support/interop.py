"""MCP clients in processes of their own, spoken to line by line: tests/interop/clients holds their programs."""

import functools
import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack

FOLDER = Path(__file__).parents[1] / "interop"
NODE_MODULES = FOLDER / "node_modules"
DOCUMENT = (Path(__file__).parents[2] / "docs" / "conformance.md").read_text(encoding="utf-8")
OLDEST_NODE = 22
GIVE_UP = 120.0
"""Seconds after which a client that hangs is ended."""

SCOPES = "io.gatehouse/scopes"
"""The member of a tool's `_meta` that names the scopes it needs."""


@functools.cache
def _missing(node: str | None) -> str | None:
    """Return what keeps a Node from running the clients, if anything does."""
    if not (NODE_MODULES / ".installed").exists():
        return "the clients for Node are not installed; `make test-interop` installs them where npm is there"
    if node is None:
        return "no Node is there"
    version = subprocess.run([node, "--version"], capture_output=True, text=True, check=True).stdout
    return None if int(version.strip("v\n").split(".")[0]) >= OLDEST_NODE else f"Node {OLDEST_NODE} is needed"


def node() -> str:
    """Return the Node that runs the clients. Without one the test is skipped, or fails where `CI=true`."""
    pinned = NODE_MODULES / ".bin" / "node"  # for Linux on x64; elsewhere what the machine has
    found = str(pinned) if pinned.exists() else shutil.which("node")
    if missing := _missing(found):
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(missing)
    return str(found)


def run(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    """Run a command-line client that may write nowhere but in one folder."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "NO_COLOR": "1"}
    return subprocess.run(
        command, cwd=home, env=environment, capture_output=True, text=True, timeout=GIVE_UP, check=False
    )


@dataclass
class Session:
    """A session of one client, in its process."""

    process: subprocess.Popen[str]
    errors: Path
    protocol: str = ""
    tools: list[dict[str, Any]] = field(default_factory=list)
    exchanges: list[tuple[str, str, int]] = field(default_factory=list)
    """Method, path and status of every HTTP exchange; known when the session is closed."""

    def write(self, message: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the client has ended:\n{self.errors.read_text(encoding='utf-8')}"
        message: dict[str, Any] = json.loads(line)
        return message

    def call(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Call a tool, and return `is_error` and `structured_content`, or what the client `raised`."""
        self.write({"tool": tool, "arguments": arguments})
        return self.read()

    def result(self, tool: str, **arguments: Any) -> dict[str, Any]:
        """Return the structured content of a call that succeeds."""
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
    """Open a session with credentials that `authserver client create` printed; close it in the end."""
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
        watchdog = threading.Timer(GIVE_UP, process.kill)
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
