"""The commands in README.md and docs/ work as they stand."""

import json
import re
import subprocess
import sys
from pathlib import Path

import demo
import httpx2
import pytest
from local_stack import LocalStack
from mcp import Client, StdioServerParameters
from support.bridge import private_file
from support.documents import ROOT, commands, link_working_copy, typed

README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCS = {path.name: path.read_text(encoding="utf-8") for path in sorted((ROOT / "docs").glob("*.md"))}
CONTINUING = ("token-command.md", "access.md", "operations.md")
"""Pages whose commands use the servers and clients of the tutorial."""

ACCEPT = {"Accept": "application/json, text/event-stream"}
WHOAMI = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": "whoami", "arguments": {}}}

CREDENTIALS = f"""
printf 'AGENT_CLIENT_ID=%s\\nAGENT_CLIENT_SECRET=%s\\n' \\
    "$(field var/client.json client_id)" "$(field var/client.json client_secret)" > {demo.CREDENTIALS}
"""
"""Writes the file that `make run` writes."""


def run_commands(script: str, folder: Path) -> str:
    """Run commands as in a working copy, and return their output. Fails if a command fails."""
    stack = LocalStack(folder)
    done = typed(script, stack, folder, AGENT_RESOURCE=stack.resource, AGENT_ISSUER=stack.issuer)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    return done.stdout


def test_the_quickstart_and_the_commands_of_make_run_work(tmp_path: Path) -> None:
    quickstart = commands(README)
    assert len(quickstart.splitlines()) <= 30
    to_try = "\n".join(re.findall(r"^  (.+)$", demo.TO_TRY, flags=re.MULTILINE))
    (tmp_path / ".venv").symlink_to(sys.prefix)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    printed = run_commands(f"{quickstart}{CREDENTIALS}{to_try}\nkill $(jobs -p)", tmp_path)
    assert '"structuredContent":{"environments":[]' in printed
    assert '"isError":false' in printed
    assert "agent: created:" in printed


def test_the_tutorial_and_the_pages_that_continue_it_work(tmp_path: Path) -> None:
    link_working_copy(tmp_path)
    tour, _, end = DOCS["tutorial.md"].partition("## Clean up")
    printed = run_commands(commands("\n".join([tour, *(DOCS[page] for page in CONTINUING), end])), tmp_path)
    for expected in (
        'www-authenticate: Bearer scope="env:read env:write org:read org:write wks:read wks:write", resource_metadata=',
        '"authorization_servers"',
        '"token_endpoint"',
        "\nenv:read\n",
        "agent: created:",
        "client.grant.add",
        '"structuredContent":{"client_id":',
    ):
        assert expected in printed, expected
    assert re.search(r"tool\.call +create_environment +allowed", printed)
    assert re.search(r"\nreason +no token\n(.*\n)*remediation +Obtain a token with resource=", printed)
    assert re.search(r"\nissued_by +the client, at the token endpoint\n", printed)
    followed = [json.loads(line) for line in (tmp_path / "var" / "followed.jsonl").read_text().splitlines()]
    assert ("tool.call", "create_environment") in {(event["action"], event["object"]) for event in followed}


def test_every_page_with_commands_is_executed() -> None:
    """deployment.md by tests/deployment, gateway.md by tests/interop, because its program needs Node.js.

    workload-identity.md by test_workload_identity_page.py, with stand-ins for the platforms.
    """
    run = {"tutorial.md", *CONTINUING, "deployment.md", "gateway.md", "workload-identity.md"}
    assert {name for name, text in DOCS.items() if commands(text)} == run


@pytest.mark.anyio
async def test_the_desktop_configurations_work_as_they_stand(
    stack: LocalStack, workspace_id: str, tmp_path: Path
) -> None:
    link_working_copy(tmp_path)
    (tmp_path / "var").mkdir()
    claim = ("--claim", f"workspace_id={workspace_id}")
    with_secret = stack.create_client("desktop", "env:read", *claim)
    private_file(tmp_path / "var" / "client.json", with_secret)
    key = str(tmp_path / "var" / "key-agent.pem")
    with_key = stack.create_client("desktop", "env:read", *claim, "--generate-key", key)
    blocks = re.findall(r"```json\n(.*?)```", DOCS["bridge.md"], flags=re.DOTALL)
    assert len(blocks) == 2
    for text, client in zip(blocks, (with_secret, with_key), strict=True):
        here = {
            "/opt/gatehouse": str(tmp_path),
            "http://127.0.0.1:8000/mcp": stack.resource,
            "http://127.0.0.1:9000": stack.issuer,
            "agent_0123456789abcdef0123": client["client_id"],
        }
        block = re.sub("|".join(map(re.escape, here)), lambda shown, here=here: here[shown[0]], text)
        (server,) = json.loads(block)["mcpServers"].values()
        async with Client(StdioServerParameters(**server), mode="legacy") as assistant:
            result = await assistant.call_tool("whoami")
        assert result.structured_content is not None
        assert result.structured_content["client_id"] == client["client_id"]


def test_the_commands_for_headers_work_as_they_stand(stack: LocalStack, workspace_id: str, tmp_path: Path) -> None:
    link_working_copy(tmp_path)
    (tmp_path / "var").mkdir()
    client = stack.create_client("assistant", "env:read", "--claim", f"workspace_id={workspace_id}")
    private_file(tmp_path / "var" / "client.json", client)
    text = DOCS["token-command.md"].replace("/opt/gatehouse", str(tmp_path))
    text = text.replace("http://127.0.0.1:8000/mcp", stack.resource).replace("http://127.0.0.1:9000", stack.issuer)
    for_claude, for_crush = map(json.loads, re.findall(r"```json\n(.*?)```", text, flags=re.DOTALL))
    helper = for_claude["mcpServers"]["gatehouse"]["headersHelper"]
    header = for_crush["mcp"]["gatehouse"]["headers"]["Authorization"]
    environment = {**stack.environment, "XDG_CACHE_HOME": str(tmp_path)}
    printed = [
        subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True).stdout
        for script in (helper, f'printf %s "{header}"')
    ]
    assert json.loads(printed[0]) == {"Authorization": printed[1]}
    answer = httpx2.post(stack.resource, json=WHOAMI, headers={**ACCEPT, "Authorization": printed[1]}, trust_env=False)
    assert answer.json()["result"]["structuredContent"]["client_id"] == client["client_id"]


def test_the_demo_tells_the_whole_story_and_leaves_nothing_behind(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "examples" / "demo.py"],
        cwd=tmp_path,
        env={**LocalStack(tmp_path).environment, "TMPDIR": str(tmp_path), "VERBOSE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    story = [
        "both servers are ready",
        "-> 401",
        "token obtained",
        "-> 403",
        "create_environment is refused",
        "grant add",
        "created:",
    ]
    positions = [done.stdout.find(part) for part in story]
    assert -1 not in positions, dict(zip(story, positions, strict=True))
    assert positions == sorted(positions)
    assert re.search(r"tool\.call +create_environment +refused +needs env:write", done.stdout)
    assert "\x1b" not in done.stdout, "no color outside a terminal"
    assert list(tmp_path.iterdir()) == []
