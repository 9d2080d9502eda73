"""What clients do with a 429 of the MCP endpoint or of the token endpoint. docs/limits.md has the results."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from local_stack import LocalStack
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.shared.exceptions import MCPError
from support import bridge
from support.interop import NODE_MODULES, run, session
from support.prepared_stack import running

from gatehouse.resourceserver import json_rpc

CLIENTS = [
    *(("python_sdk.py", protocol) for protocol in ("2026-07-28", "2025-11-25")),
    *(("fastmcp_client.py", protocol) for protocol in ("2026-07-28", "2025-11-25")),
    ("typescript_sdk_1.mjs", "2025-11-25"),
    *(("typescript_sdk_2.mjs", protocol) for protocol in ("2026-07-28", "2025-11-25")),
]
TOLD = "Too many calls: this one was not executed. Wait 3"
ATTEMPTS = 3
"""Calls of which at least one is refused: each of two workers allows one."""

TOKENS = 4
"""Tokens that both workers together give a client."""

every_client = pytest.mark.parametrize(("program", "protocol"), CLIENTS)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A stack whose two workers allow a client one call of a tool and two tokens each."""
    few = {"RESOURCESERVER_LIMIT_TOOL_CALLS": "2/hour", "AUTHSERVER_LIMIT_TOKEN_REQUESTS": f"{TOKENS}/hour"}
    with running(tmp_path_factory.mktemp("limited") / "stack", **few) as stack:
        yield stack


def request_token(stack: LocalStack, client: dict[str, Any]) -> httpx2.Response:
    basic, form = (client["client_id"], client["client_secret"]), {"grant_type": "client_credentials"}
    return httpx2.post(f"{stack.issuer}/token", auth=basic, data=form)


def exhaust(stack: LocalStack, client: dict[str, Any]) -> None:
    """Request every token that both workers give a client."""
    allowed = 0
    while allowed < TOKENS:
        # The system chooses the worker of each connection.
        allowed += request_token(stack, client).status_code == 200


@every_client
def test_an_sdk_reports_a_limited_call_and_does_not_repeat_it(
    limited: LocalStack, program: str, protocol: str, tmp_path: Path
) -> None:
    client = limited.create_client("caller", "env:read")
    with session(program, limited, client, protocol, tmp_path / "errors") as agent:
        answers = [agent.call("whoami") for _ in range(ATTEMPTS)]
    first, *_ = refused = [answer for answer in answers if "raised" in answer]
    assert TOLD in first["message"]
    if program.endswith(".py"):
        assert (first["raised"], first["code"]) == ("MCPError", json_rpc.TOO_MANY_REQUESTS)
    else:
        assert (first["code"] if program == "typescript_sdk_1.mjs" else first["data"]["status"]) == 429
    assert [status for _, path, status in agent.exchanges if path == "/mcp"].count(429) == len(refused)


@every_client
def test_an_sdk_ends_its_session_without_a_token(
    limited: LocalStack, program: str, protocol: str, tmp_path: Path
) -> None:
    client, errors = limited.create_client("caller", "env:read"), tmp_path / "errors"
    exhaust(limited, client)
    with (
        pytest.raises(AssertionError, match="the client process has exited"),
        session(program, limited, client, protocol, errors),
    ):
        pass
    assert "Too many requests. Wait 3" in errors.read_text(encoding="utf-8")


@pytest.mark.parametrize("era", ["legacy", "modern"])
def test_the_inspector_says_when_to_retry(limited: LocalStack, node: str, tmp_path: Path, era: str) -> None:
    launcher = NODE_MODULES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
    token = request_token(limited, limited.create_client("caller", "env:read")).json()["access_token"]
    command = [node, str(launcher), "--cli", limited.resource, "--transport", "http", "--format", "json"]
    command += ["--header", f"Authorization: Bearer {token}", "--protocol-era", era]
    done = [run([*command, "--method", "tools/call", "--tool-name", "whoami"], tmp_path) for _ in range(ATTEMPTS)]
    refused = next(each for each in done if each.returncode)
    assert refused.returncode == 1
    printed = json.loads(refused.stderr.splitlines()[-1])
    assert "Rate limited by the server (HTTP 429) on tools/call. The server asked to retry after " in str(printed)


def mcp_remote(stack: LocalStack, client: dict[str, Any], node: str) -> list[str]:
    """Return the command that serves a resource on stdio. The secret is in the variable SECRET."""
    return [
        *(node, str(NODE_MODULES / "mcp-remote" / "dist" / "proxy.js"), stack.resource, "--transport", "http-only"),
        *("--client-credentials", "--static-oauth-client-info"),
        json.dumps({"client_id": client["client_id"], "client_secret": "${SECRET}"}),
        # With discovery, it requires an authorization server that has the authorization code grant.
        *("--token-endpoint", f"{stack.issuer}/token"),
    ]


@pytest.mark.anyio
@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_mcp_remote_reports_the_error(limited: LocalStack, node: str, tmp_path: Path, mode: Any) -> None:
    agent = limited.create_client("caller", "env:read")
    command, *args = mcp_remote(limited, agent, node)
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "SECRET": agent["client_secret"]}
    remote = StdioServerParameters(command=command, args=args, env=environment)
    with (tmp_path / "errors").open("w", encoding="utf-8") as errors:
        async with Client(stdio_client(remote, errlog=errors), mode=mode, read_timeout_seconds=60) as client:
            with pytest.raises(MCPError, match=TOLD):
                for _ in range(ATTEMPTS):
                    await client.call_tool("whoami", {})
            assert (await client.list_tools()).tools, "the session goes on"


def test_mcp_remote_exits_without_a_token(limited: LocalStack, node: str, tmp_path: Path) -> None:
    agent = limited.create_client("caller", "env:read")
    exhaust(limited, agent)
    done = run(mcp_remote(limited, agent, node), tmp_path, SECRET=agent["client_secret"])
    assert done.returncode == 1
    assert "Fatal error: OAuthError2: Too many requests. Wait 3" in done.stderr
    assert agent["client_secret"] not in done.stderr + done.stdout


@pytest.mark.anyio
async def test_the_bridge_says_when_to_repeat_a_limited_call(limited: LocalStack) -> None:
    client = limited.create_client("caller", "env:read")
    async with bridge.start(limited, "legacy", "--issuer", limited.issuer, env=bridge.by_secret(client)) as desktop:
        results = [await desktop.mcp.call_tool("whoami", {}) for _ in range(ATTEMPTS)]
    refused = bridge.error_text(next(result for result in results if result.is_error))
    assert "asks to retry later (status 429). The request was not executed; wait 3" in refused
