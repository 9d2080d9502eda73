"""`resourceserver token` prints tokens of a real authorization server, and keeps them."""

import json
import stat
import subprocess
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import pytest
from local_stack import LocalStack
from support.bridge import by_secret, private_file
from support.forks import fork_server
from support.waiting import wait_until

PROCESSES = 12

CALL = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}
HEADERS = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": "2025-11-25"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def token(stack: LocalStack, tmp_path: Path) -> Run:
    """Run `resourceserver token` for the stack's resource, with a cache of its own."""

    def run(*options: str, **env: str) -> subprocess.CompletedProcess[str]:
        environment = {**stack.environment, "XDG_CACHE_HOME": str(tmp_path), **env}
        return fork_server().run(["resourceserver", "token", stack.resource, *options], stack.folder, environment)

    return run


def printed(done: subprocess.CompletedProcess[str]) -> str:
    """Return the standard output of a command that succeeded without a word on standard error."""
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def whoami(stack: LocalStack, headers: Mapping[str, str]) -> Any:
    """Call a tool with the headers of a token."""
    answer = httpx2.post(stack.resource, json=CALL, headers={**HEADERS, **headers}, trust_env=False)
    assert answer.status_code == 200, answer.text
    return answer.json()["result"]["structuredContent"]["client_id"]


def issued(stack: LocalStack, client_id: str) -> int:
    """Return how many tokens a client was issued."""
    events = stack.run_json("authserver", "audit", "--client", client_id, "--action", "token.issue")
    return sum(event["outcome"] == "allowed" for event in events)


@pytest.mark.parametrize("method", ["client_secret_basic", "client_secret_post", "private_key_jwt"])
def test_a_tool_is_called_with_the_printed_token(
    stack: LocalStack, workspace_id: str, tmp_path: Path, token: Run, method: str
) -> None:
    claim, key = ("--claim", f"workspace_id={workspace_id}"), tmp_path / "agent.pem"
    if method == "private_key_jwt":
        client = stack.create_client("script", "env:read", *claim, "--generate-key", str(key))
        options, env = ("--credentials", str(key)), {"BRIDGE_CLIENT_ID": client["client_id"]}
    else:
        client = stack.create_client("script", "env:read", *claim, "--auth-method", method)
        options, env = ("--credentials", str(private_file(tmp_path / "client.json", client))), {}
    value = printed(token(*options, "--issuer", stack.issuer, **env)).removesuffix("\n")
    assert whoami(stack, {"Authorization": f"Bearer {value}"}) == client["client_id"]
    as_json = json.loads(printed(token(*options, "--issuer", stack.issuer, "--output", "headers-json", **env)))
    assert as_json == {"Authorization": f"Bearer {value}"}
    answer = json.loads(printed(token(*options, "--output", "json", **env)))
    assert (answer["token_type"], answer["scope"]) == ("Bearer", "env:read")
    assert 0 < answer["expires_in"] <= 300
    assert whoami(stack, {"Authorization": f"Bearer {answer['access_token']}"}) == client["client_id"]


def test_curl_takes_the_header_from_standard_input(
    stack: LocalStack, workspace_id: str, tmp_path: Path, token: Run
) -> None:
    """An argument would be visible to other users of the machine."""
    client = stack.create_client("script", "env:read", "--claim", f"workspace_id={workspace_id}")
    header = printed(token("--output", "header", **by_secret(client)))
    names = [argument for name, value in HEADERS.items() for argument in ("-H", f"{name}: {value}")]
    command = ["curl", "-fsS", "-H", "@-", *names, "-H", "Content-Type: application/json", "-d", json.dumps(CALL)]
    done = subprocess.run([*command, stack.resource], input=header, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["result"]["structuredContent"]["client_id"] == client["client_id"]


def test_processes_at_once_make_one_token_request(stack: LocalStack, tmp_path: Path, token: Run) -> None:
    client = stack.create_client("script", "env:read")
    with ThreadPoolExecutor(PROCESSES) as threads:
        futures = [threads.submit(token, **by_secret(client)) for _ in range(PROCESSES)]
        values = {printed(future.result()) for future in futures}
    assert len(values) == 1
    wait_until(lambda: issued(stack, client["client_id"]) > 0)
    assert issued(stack, client["client_id"]) == 1
    kept = list((tmp_path / "gatehouse" / "tokens").iterdir())
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept} == {0o600}
    assert stat.S_IMODE((tmp_path / "gatehouse" / "tokens").stat().st_mode) == 0o700


def test_a_rotated_secret_gets_a_new_token(stack: LocalStack, tmp_path: Path, token: Run) -> None:
    client = stack.create_client("script", "env:read")
    file = private_file(tmp_path / "client.json", client)
    first = printed(token("--credentials", str(file)))
    assert printed(token("--credentials", str(file))) == first
    rotated = stack.run_json("authserver", "client", "secret", "rotate", client["client_id"], "--grace-period", "1h")
    private_file(file, rotated)
    assert rotated["client_secret"] != client["client_secret"]
    # The server may know only the old secret for another second.
    wait_until(lambda: token("--credentials", str(file)).returncode == 0)
    second = printed(token("--credentials", str(file)))
    assert second != first
    assert printed(token("--credentials", str(file))) == second


def test_scopes_can_be_requested(stack: LocalStack, token: Run) -> None:
    client = stack.create_client("script", "env:read env:write org:read")
    for scope in ("env:read", "env:read org:read"):
        answer = json.loads(printed(token("--output", "json", "--scope", scope, **by_secret(client))))
        assert answer["scope"] == scope
    refused = token("--scope", "wks:write", **by_secret(client))
    assert (refused.returncode, refused.stdout) == (1, "")
    grant = f"grant add {client['client_id']} --resource {stack.resource} --scope wks:write"
    assert grant in refused.stderr


def test_a_short_token_is_not_kept(stack: LocalStack, tmp_path: Path, token: Run) -> None:
    client = stack.create_client("script", "env:read", "--ttl", "60")
    assert printed(token(**by_secret(client))) != printed(token(**by_secret(client)))
    assert [path.suffix for path in (tmp_path / "gatehouse" / "tokens").iterdir()] == [".lock"]


@pytest.mark.threat("T-120")
def test_standard_error_has_no_secret_and_no_token(stack: LocalStack, token: Run) -> None:
    client = stack.create_client("script", "env:read")
    verbose = {**by_secret(client), "BRIDGE_LOG_LEVEL": "DEBUG"}
    allowed = token("--no-cache", **verbose)
    assert (allowed.returncode, "token obtained" in allowed.stderr) == (0, True)
    wrong = token("--no-cache", **{**verbose, "BRIDGE_CLIENT_SECRET": f"{client['client_secret']}x"})
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert f"did not accept the client {client['client_id']}" in wrong.stderr
    for done in (allowed, wrong):
        assert client["client_secret"] not in done.stderr
        assert "eyJ" not in done.stderr
        assert "Traceback" not in done.stderr


def test_a_refused_client_keeps_no_token(stack: LocalStack, tmp_path: Path, token: Run) -> None:
    client = stack.create_client("script", "env:read")
    wrong = {**by_secret(client), "BRIDGE_CLIENT_SECRET": "wrong"}
    assert token(**wrong).returncode == 1
    assert [path.suffix for path in (tmp_path / "gatehouse" / "tokens").iterdir()] == [".lock"]
    assert printed(token(**by_secret(client)))
