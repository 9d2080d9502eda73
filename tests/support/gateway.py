"""A gateway in front of an MCP server: both of our servers, with a policy that was drafted and confirmed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2

from support.interop import unlimited_token
from support.prepared_stack import PreparedStack, running
from support.waiting import wait_until

PREFIX = "upstream"
"""The start of the scopes: a tool that only reads needs `upstream:read`, and others another one."""


@contextmanager
def gateway(folder: Path, *upstream: str, **settings: str) -> Iterator[PreparedStack]:
    """Run an installation in front of an MCP server until the block ends. Callers may call every tool of it.

    Args:
        folder: is created, for the policy file and the installation.
        upstream: what `resourceserver policy draft` takes: `--url URL`, or `--` and a command.
        settings: further settings of the installation.
    """
    folder.mkdir()
    policy = folder / "policy.toml"
    settings = {**settings, "RESOURCESERVER_UPSTREAM": str(policy)}
    operator = PreparedStack(folder, settings=settings)
    operator.run("resourceserver", "policy", "draft", "--output-file", str(policy), "--scope-prefix", PREFIX, *upstream)
    operator.run("resourceserver", "policy", "confirm", "--all", "--yes")
    with running(folder / "stack", **settings) as stack:
        token = unlimited_token(stack)
        # The server is ready before its workers know the tools. The system chooses the worker of each connection.
        wait_until(lambda: all(_lists_tools(stack.resource, token) for _ in range(10)))
        yield stack


def _lists_tools(resource: str, token: str) -> bool:
    headers = {"Authorization": f"Bearer {token}", "Accept": "application/json, text/event-stream"}
    listed = httpx2.post(resource, headers=headers, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    return bool(listed.json()["result"]["tools"])
