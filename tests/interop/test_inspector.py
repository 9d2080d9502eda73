"""The command line of MCP Inspector, with a ready-made access token."""

import json
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack
from support.interop import NODE_MODULES, SCOPES, run

LAUNCHER = NODE_MODULES / "@modelcontextprotocol" / "inspector" / "clients" / "launcher" / "build" / "index.js"
TOOL_NOT_FOUND, AUTH_REQUIRED = 5, 3

both_eras = pytest.mark.parametrize("era", ["legacy", "modern"])


class Inspector:
    """Runs the Inspector command against one resource."""

    def __init__(self, node: str, stack: LocalStack, home: Path) -> None:
        self.command = [node, str(LAUNCHER), "--cli", stack.resource, "--transport", "http", "--format", "json"]
        self.home = home

    def run(self, era: str, token: str | None, *arguments: str) -> tuple[int, Any]:
        """Return the exit code, and the printed result or error."""
        # Without a header or this option, Inspector opens a browser for the user to log in.
        bearer = ["--header", f"Authorization: Bearer {token}"] if token else ["--stored-auth-only"]
        done = run([*self.command, *bearer, "--protocol-era", era, *arguments], self.home)
        return done.returncode, json.loads(done.stderr.splitlines()[-1] if done.returncode else done.stdout)


@pytest.fixture
def inspector(node: str, stack: LocalStack, home: Path) -> Inspector:
    return Inspector(node, stack, home)


@both_eras
def test_the_inspector_lists_the_tools_that_a_token_allows(
    inspector: Inspector, reader_token: str, catalogue: dict[str, Any], era: str
) -> None:
    code, printed = inspector.run(era, reader_token, "--method", "tools/list")
    assert code == 0, printed
    shown = {tool["name"]: tool for tool in printed["result"]["tools"]}
    expected = {tool["name"]: tool for tool in catalogue["tools"] if set(tool["scopes"]) <= {"env:read"}}
    assert shown.keys() == expected.keys()
    for name, tool in shown.items():
        assert tool["_meta"][SCOPES] == expected[name]["scopes"]
        assert tool["inputSchema"]["properties"] == expected[name]["input_schema"]["properties"]
        assert tool["inputSchema"].get("required") == expected[name]["input_schema"].get("required")
        assert tool["outputSchema"]["type"] == "object"


@both_eras
def test_the_inspector_calls_a_tool(inspector: Inspector, reader_token: str, readers: dict[str, Any], era: str) -> None:
    code, printed = inspector.run(era, reader_token, "--method", "tools/call", "--tool-name", "whoami")
    assert code == 0, printed
    assert printed["result"]["structuredContent"]["client_id"] == readers["secret"]["client_id"]
    assert printed["result"]["structuredContent"]["scopes"] == ["env:read"]


@both_eras
def test_the_inspector_does_not_find_a_forbidden_tool(inspector: Inspector, reader_token: str, era: str) -> None:
    """Inspector looks the tool up in the listing first, so the server receives no call."""
    allowed = ("--method", "tools/call", "--tool-name", "list_environments", "--tool-arg", "page_size=1")
    code, printed = inspector.run(era, reader_token, *allowed)
    assert code == 0, printed
    forbidden = ("--method", "tools/call", "--tool-name", "create_environment", "--tool-arg", "name=never")
    code, printed = inspector.run(era, reader_token, *forbidden)
    assert (code, printed["error"]["code"]) == (TOOL_NOT_FOUND, "tool_not_found")


@both_eras
def test_the_inspector_reports_that_authorization_is_required(
    inspector: Inspector, reader_token: str, era: str
) -> None:
    assert inspector.run(era, reader_token, "--method", "tools/list")[0] == 0
    for token in (None, reader_token + "x"):
        code, printed = inspector.run(era, token, "--method", "tools/list")
        assert (code, printed["error"]["code"]) == (AUTH_REQUIRED, "auth_required")


@both_eras
def test_the_inspector_has_only_the_authorization_code_grant(
    inspector: Inspector, readers: dict[str, Any], era: str
) -> None:
    """So it requests no token with the credentials of a client."""
    secret = readers["secret"]
    credentials = ("--client-id", secret["client_id"], "--client-secret", secret["client_secret"])
    code, printed = inspector.run(era, None, *credentials, "--method", "tools/list")
    if era == "legacy":
        assert (code, printed["error"]["code"]) == (AUTH_REQUIRED, "auth_required")
    else:
        assert printed["error"]["message"] == "Incompatible auth server: does not support response type code"
