"""Servers of other projects behind the gateway, and clients of other projects that call their tools."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack
from support.gateway import PREFIX, gateway
from support.interop import NODE_MODULES, SCOPES, Session, call_until_granted, serving, session

READ, WRITE = f"{PREFIX}:read", f"{PREFIX}:write"
CLIENTS = [
    ("python_sdk.py", "2026-07-28"),
    ("python_sdk.py", "2025-11-25"),
    ("fastmcp_client.py", "2026-07-28"),
    ("typescript_sdk_1.mjs", "2025-11-25"),
    ("typescript_sdk_2.mjs", "2026-07-28"),
]


@dataclass(frozen=True)
class Call:
    """A call of a tool, and a text that its result contains."""

    tool: str
    text: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def by(self, agent: Session) -> dict[str, Any]:
        return agent.call(self.tool, **self.arguments)


@dataclass(frozen=True)
class Upstream:
    """A server of another project, with a tool that only reads and one that writes."""

    name: str
    program: str
    """In tests/interop/servers for a server over HTTP, otherwise a package that is started on stdio."""
    read: Call
    write: Call


NOTES = Call("read_notes", " notes: "), Call("add_note", "Added milk", {"text": "milk"})
MILK = {"name": "milk", "entityType": "drink", "observations": ["white"]}
UPSTREAMS = [
    Upstream(
        "server-everything",
        "@modelcontextprotocol/server-everything",
        Call("echo", "Echo: hello", {"message": "hello"}),
        Call("toggle-simulated-logging", " simulated"),
    ),
    Upstream(
        "server-memory",
        "@modelcontextprotocol/server-memory",
        Call("read_graph", '"entities"'),
        Call("create_entities", "[", {"entities": [MILK]}),
    ),
    Upstream("TypeScript SDK 2.x", "typescript_sdk_2.mjs", *NOTES),
    Upstream("FastMCP", "fastmcp_server.py", *NOTES),
]


@pytest.fixture(scope="module", params=UPSTREAMS, ids=lambda upstream: upstream.name)
def behind(
    request: pytest.FixtureRequest, node: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[LocalStack, Upstream]]:
    """A gateway in front of an upstream."""
    upstream: Upstream = request.param
    folder = tmp_path_factory.mktemp("upstream")
    with ExitStack() as stack:
        if upstream.program.startswith("@"):
            program = NODE_MODULES / upstream.program / "dist" / "index.js"
            drafted = ["--environment", "MEMORY_FILE_PATH", "--", node, str(program)]
        else:
            drafted = ["--url", stack.enter_context(serving(upstream.program, log=folder / "server.log"))]
        memory = str(folder / "memory.jsonl")
        yield stack.enter_context(gateway(folder / "gateway", *drafted, MEMORY_FILE_PATH=memory)), upstream


@pytest.mark.parametrize(("program", "protocol"), CLIENTS)
def test_a_client_calls_a_tool_of_the_upstream_after_a_grant(
    behind: tuple[LocalStack, Upstream], program: str, protocol: str, tmp_path: Path
) -> None:
    stack, upstream = behind
    client = stack.create_client("caller", READ)
    with session(program, stack, client, protocol, tmp_path / "errors") as agent:
        assert agent.protocol == protocol
        assert upstream.read.text in upstream.read.by(agent)["text"]
        assert "raised" in upstream.write.by(agent)
        grant = ("client", "grant", "add", client["client_id"], "--resource", stack.resource, "--scope", WRITE)
        stack.run("authserver", *grant)
        granted = call_until_granted(partial(upstream.write.by, agent), partial(upstream.read.by, agent))
    assert upstream.write.text in granted["text"]
    listed = {tool["name"]: tool["_meta"][SCOPES] for tool in agent.tools}
    assert listed[upstream.read.tool] == [READ]
    assert upstream.write.tool not in listed
    assert ("POST", "/mcp", 403) in agent.exchanges
