"""The official SDKs and FastMCP: token requests, tool calls, rejected calls and step-up authorization."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack
from support.interop import SCOPES, call_until_granted, session

from gatehouse.resourceserver import json_rpc

PROTOCOLS = {
    "python_sdk.py": ["2026-07-28", "2025-11-25"],
    "fastmcp_client.py": ["2026-07-28", "2025-11-25"],
    "typescript_sdk_1.mjs": ["2025-11-25"],
    "typescript_sdk_2.mjs": ["2026-07-28", "2025-11-25"],
}
every_client = pytest.mark.parametrize(
    ("program", "protocol"), [(program, protocol) for program, spoken in PROTOCOLS.items() for protocol in spoken]
)
both_methods = pytest.mark.parametrize("method", ["secret", "private_key_jwt"])
every_method = pytest.mark.parametrize("method", ["secret", "private_key_jwt", "workload_identity"])

_names = (f"env-{number}" for number in itertools.count())


def _error_text(program: str, answer: dict[str, Any]) -> str:
    """Return the text of a rejection as the calling code receives it, which differs between clients."""
    if program == "typescript_sdk_1.mjs":
        assert (answer["raised"], answer["code"]) == ("StreamableHTTPError", 403)
        return str(answer["message"])
    if program == "typescript_sdk_2.mjs":
        assert (answer["raised"], answer["code"]) == ("SdkHttpError", "CLIENT_HTTP_FORBIDDEN")
        return str(answer["data"]["text"])
    assert (answer["raised"], answer["code"]) == ("MCPError", json_rpc.INSUFFICIENT_SCOPE)
    assert answer["data"]["scope"] == "env:write"
    return str(answer["message"])


def _statuses(exchanges: list[tuple[str, str, int]], *paths: str) -> list[tuple[str, int]]:
    return [(path, status) for _, path, status in exchanges if path in paths]


@every_client
@every_method
def test_a_client_obtains_a_token_and_calls_its_tools(
    stack: LocalStack,
    readers: dict[str, Any],
    catalogue: dict[str, Any],
    workspace_id: str,
    program: str,
    protocol: str,
    method: str,
    tmp_path: Path,
) -> None:
    with session(program, stack, readers[method], protocol, tmp_path / "errors") as agent:
        identity = agent.result("whoami")
        page = agent.result("list_environments", page_size=1)
        missing = agent.call("get_environment_details", environment_id=f"env_{'0' * 26}")
    assert agent.protocol == protocol
    assert identity["client_id"] == readers[method]["client_id"]
    assert (identity["scopes"], identity["workspace_id"]) == (["env:read"], workspace_id)
    assert len(page["environments"]) <= 1
    assert missing.get("is_error") is True, missing
    assert {tool["name"]: tool["_meta"][SCOPES] for tool in agent.tools} == {
        tool["name"]: tool["scopes"] for tool in catalogue["tools"] if set(tool["scopes"]) <= {"env:read"}
    }
    assert agent.exchanges[:4] == [
        ("POST", "/mcp", 401),
        ("GET", "/.well-known/oauth-protected-resource/mcp", 200),
        ("GET", "/.well-known/oauth-authorization-server", 200),
        ("POST", "/token", 200),
    ]
    assert _statuses(agent.exchanges, "/token") == [("/token", 200)]


@pytest.mark.parametrize("program", ["typescript_sdk_1.mjs", "typescript_sdk_2.mjs"])
def test_a_client_sends_the_token_of_its_platform_as_the_grant(
    stack: LocalStack, readers: dict[str, Any], program: str, tmp_path: Path
) -> None:
    """The SDK reads from the metadata that `none` is a method, and so sends no client authentication."""
    credentials = {**readers["workload_identity"], "as_grant": True}
    with session(program, stack, credentials, PROTOCOLS[program][0], tmp_path / "errors") as agent:
        assert agent.result("whoami")["client_id"] == credentials["client_id"]
    issued = stack.run_json("authserver", "audit", "--client", credentials["client_id"], "--action", "token.issue")
    assert issued[-1]["outcome"] == "allowed"
    assert _statuses(agent.exchanges, "/token") == [("/token", 200)]


@every_client
@both_methods
def test_a_forbidden_call_fails_after_one_step_up(
    stack: LocalStack, readers: dict[str, Any], program: str, protocol: str, method: str, tmp_path: Path
) -> None:
    with session(program, stack, readers[method], protocol, tmp_path / "errors") as agent:
        assert agent.result("whoami")["scopes"] == ["env:read"]
        text = _error_text(program, agent.call("create_environment", name=next(_names)))
        assert agent.result("whoami")["scopes"] == ["env:read"]
    # Version 1 of the TypeScript SDK does not expose the response body.
    assert "403 after trying upscoping" in text or "This tool needs the scope env:write" in text
    assert _statuses(agent.exchanges, "/mcp", "/token")[-5:] == [
        ("/mcp", 200),
        ("/mcp", 403),
        ("/token", 200),
        ("/mcp", 403),
        ("/mcp", 200),
    ]


@every_client
def test_a_client_steps_up_after_a_new_grant(
    stack: LocalStack, workspace_id: str, program: str, protocol: str, tmp_path: Path
) -> None:
    credentials = stack.create_client("stepper", "env:read", "--claim", f"workspace_id={workspace_id}")
    name = next(_names)
    with session(program, stack, credentials, protocol, tmp_path / "errors") as agent:
        assert "raised" in agent.call("create_environment", name=name)
        stack.run(
            *("authserver", "client", "grant", "add", credentials["client_id"]),
            *("--resource", stack.resource, "--scope", "env:write"),
        )
        create = partial(agent.call, "create_environment", name=name)
        created = call_until_granted(create, partial(agent.result, "whoami"))["structured_content"]
        assert agent.result("get_environment_details", environment_id=created["environment_id"]) == created
        assert agent.result("whoami")["scopes"] == ["env:read", "env:write"]
