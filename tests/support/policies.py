"""The `policy` commands, run in one folder against an upstream that lists tools and does nothing else."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gatehouse.resourceserver.catalogue.policy_file import PolicyFile, UpstreamSettings, parse_policy
from gatehouse.resourceserver.cli import main
from gatehouse.resourceserver.upstream.upstream import ToolCall, UpstreamError

COMMAND = ("uvx", "mcp-server-notes")

SCHEMA = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}


def tool(name: str, description: str | None = None, **annotations: Any) -> dict[str, Any]:
    """Return a tool as an upstream lists it."""
    listed: dict[str, Any] = {"name": name, "inputSchema": deepcopy(SCHEMA)}
    if description is not None:
        listed["description"] = description
    if annotations:
        listed["annotations"] = annotations
    return listed


def notes() -> list[dict[str, Any]]:
    """Return the tools of a server that keeps notes."""
    return [
        tool("find_notes", "Find notes by a word.", readOnlyHint=True),
        tool("add_note", "Add a note.\nIt is kept for a year."),
        tool("delete_notes", "Delete all notes.", destructiveHint=True),
    ]


class ListedTools:
    """An upstream that lists tools, or fails to."""

    def __init__(self, tools: list[dict[str, Any]], failure: UpstreamError | None) -> None:
        self._tools = tools
        self._failure = failure

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield

    async def list_tools(self) -> list[dict[str, Any]]:
        if self._failure is not None:
            raise self._failure
        return deepcopy(self._tools)

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        raise AssertionError(call)


class Policies:
    """Runs the commands in a folder, with the policy in `policy.toml`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(folder)
        monkeypatch.setattr("gatehouse.resourceserver.cli.policy_inputs.open_upstream", self._open)
        self.path = folder / "policy.toml"
        self.tools = notes()
        self.failure: UpstreamError | None = None
        self.opened: list[UpstreamSettings] = []

    def _open(self, settings: UpstreamSettings) -> ListedTools:
        self.opened.append(settings)
        return ListedTools(self.tools, self.failure)

    def run(self, *arguments: str, code: int = 0, answer: str = "", **environment: str) -> Result:
        """Run a `policy` command, which must end with an exit code."""
        result = CliRunner().invoke(main, ["policy", *arguments], input=answer, env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == code, result.output
        return result

    def draft(self, *options: str) -> str:
        """Draft the policy into the file, and return its text."""
        self.run("draft", *options, "--", *COMMAND)
        return self.text

    def confirm(self, *arguments: str, code: int = 0, answer: str = "") -> Result:
        return self.run("confirm", *arguments, "--upstream", "policy.toml", code=code, answer=answer)

    def differences(self) -> dict[str, dict[str, Any]]:
        """Return the records of `policy check` by the name of the tool."""
        result = CliRunner().invoke(main, ["policy", "check", "--upstream", "policy.toml", "--output", "json"])
        records = json.loads(result.stdout)
        assert result.exit_code == bool(records), result.output
        return {record["tool"]: record for record in records}

    @property
    def text(self) -> str:
        return self.path.read_bytes().decode()

    @property
    def policy(self) -> PolicyFile:
        return parse_policy(self.text, self.path.parent)
