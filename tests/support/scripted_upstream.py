"""An upstream whose tools and answers a test decides, and a policy for it."""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from gatehouse.resourceserver.catalogue.policy_file import UpstreamSettings
from gatehouse.resourceserver.catalogue.tool_digest import tool_digest
from gatehouse.resourceserver.upstream.upstream import ToolCall, UpstreamUnavailable

Answer = Callable[[ToolCall], Any]


def tool(name: str, **members: Any) -> dict[str, Any]:
    """Return a tool as an upstream lists it."""
    schema = {"type": "object", "properties": {"text": {"type": "string"}, "tenant": {"type": "string"}}}
    return {"name": name, "description": f"The tool {name}.", "inputSchema": schema, **members}


def text(value: str) -> dict[str, Any]:
    """Return the result of a tool that answers with a text."""
    return {"content": [{"type": "text", "text": value}]}


@dataclass
class ScriptedUpstream:
    """The tools, and how calls are answered. It is unreachable while `away` is set."""

    tools: list[dict[str, Any]] = field(default_factory=lambda: [tool("read"), tool("write")])
    answers: dict[str, Any] = field(default_factory=dict)
    """By the name of a tool: a result, an exception to raise, or a function of the call."""
    calls: list[ToolCall] = field(default_factory=list)
    lists: int = 0
    away: bool = False
    opened: list[UpstreamSettings] = field(default_factory=list)
    closed: int = 0
    list_failure: Exception | None = None
    """Raised by the next lists."""
    running_failure: Exception | None = None
    """Raised when the upstream is opened the next time."""

    def open(self, settings: UpstreamSettings, _: object) -> "ScriptedUpstream":
        """Open it. The second argument is the database of the callers' sessions."""
        self.opened.append(settings)
        return self

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        if self.running_failure is not None:
            raise self.running_failure
        try:
            yield
        finally:
            self.closed += 1

    async def list_tools(self) -> list[dict[str, Any]]:
        self.lists += 1
        if self.list_failure is not None:
            raise self.list_failure
        if self.away:
            raise UpstreamUnavailable("the test's upstream is away")
        return [*self.tools]

    async def call_tool(self, call: ToolCall) -> dict[str, Any]:
        self.calls.append(call)
        if self.away:
            raise UpstreamUnavailable("the test's upstream is away")
        answer = self.answers.get(call.tool["name"], text("done"))
        if callable(answer):
            answer = await answer(call)
        if isinstance(answer, BaseException):
            raise answer
        result: dict[str, Any] = answer
        return result


def policy_text(tools: Mapping[str, Mapping[str, Any]], *, url: str = "http://127.0.0.1:1/mcp", more: str = "") -> str:
    """Return a policy file with the scopes `notes:read` and `notes:write`.

    `tools` has the members of each tool, as TOML: the digest of `listed`, a tool of the upstream, is added.
    """
    lines = [
        "[upstream]",
        f'url = "{url}"',
        '[scopes."notes:read"]',
        'description = "Read notes"',
        '[scopes."notes:write"]',
        'description = "Write notes"',
        'implies = ["notes:read"]',
    ]
    for name, members in tools.items():
        lines.append(f"[tools.{name}]")
        listed = members.get("listed")
        if listed is not None:
            lines.append(f'digest = "{tool_digest(listed)}"')
        lines += [f"{key} = {value}" for key, value in members.items() if key != "listed"]
    return "\n".join([*lines, more, ""])
