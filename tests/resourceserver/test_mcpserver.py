"""An existing MCPServer behind the guard: a closed table of tools, and the same authorization."""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import httpx2
import pytest
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken, TokenVerifier
from mcp.server.auth.settings import AuthSettings
from mcp.server.context import ServerRequestContext
from mcp.server.extension import Extension
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolRequestParams, CallToolResult, InputRequiredResult, TextContent, ToolAnnotations
from pydantic import AfterValidator, BaseModel
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import (
    ISSUER,
    RESOURCE,
    ResourceServer,
    running_resource_server,
    settings_in,
)
from support.ungated import ask, nothing, proven, without_gate

from gatehouse.resourceserver.app import guard
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, Scope
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.server import build_server
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.writer import AuditWriter

SECRET = "hunter2"
READS = ToolAnnotations(read_only_hint=True)
DECLARED = [Scope("note:write", "Write notes", implies=("note:read",)), Scope("note:read", "Read notes")]


FAILURES = {
    "refused": ToolError("The notebook is full. Tear out a page."),
    "broken": RuntimeError(SECRET),
    "protocol": MCPError(-32000, SECRET),
}


class Note(BaseModel):
    """A structured result."""

    text: str
    of: str


def refuse(text: str) -> str:
    if text == SECRET:
        raise ValueError(f"{text} is refused")
    return text


def notes(runs: list[str], **options: Any) -> MCPServer[Any]:
    """Return a server as a user writes it for the SDK."""
    server: MCPServer[Any] = MCPServer("Notes", instructions="Read first.", **options)

    @server.tool(title="A note", annotations=READS, meta={"io.example/own": 1})
    def read_note(number: int) -> Note:
        """Read a note."""
        runs.append("read_note")
        token = get_access_token()
        return Note(text=f"note {number}", of=token.client_id if token else "nobody")

    @server.tool()
    async def write_note(text: Annotated[str, AfterValidator(refuse)], kind: str = "a") -> CallToolResult:
        """Write a note."""
        runs.append("write_note")
        if kind in FAILURES:
            raise FAILURES[kind]
        if kind == "nested":
            await server.call_tool("read_note", {"number": SECRET})
        if kind == "asking":
            return InputRequiredResult(request_state="s")  # type: ignore[return-value]
        content = TextContent(text=f"{kind}: {text}", _meta={"io.example/line": 1})
        return CallToolResult(content=[content], structured_content={"kind": kind}, is_error=kind == "error")

    @server.tool(annotations=READS)
    async def look_around(context: Context[Any, Any]) -> str:
        """Return what a tool sees of the request."""
        await context.report_progress(1, 2)
        await context.notify_resources_changed()
        token = get_access_token()
        seen = (context.headers, context.request_context.request, context.request_context.lifespan_context, token)
        return repr(seen)

    @server.tool()
    def burn_notes() -> str:
        """Burn every note."""
        runs.append("burn_notes")
        return "ash"

    @server.resource("notes://all")
    def everything() -> str:
        runs.append("everything")
        return "every note"

    @server.prompt()
    def summarize() -> str:
        runs.append("summarize")
        return "Summarize."

    return server


class Verifier(TokenVerifier):
    """A token verifier of the guarded server."""

    async def verify_token(self, token: str) -> AccessToken | None:
        return None


TABLE = {"read_note": ["note:read"], "write_note": ["note:write"], "look_around": ANY_VALID_TOKEN}


class Guarded(NamedTuple):
    """A guarded server, and the tools that it has run."""

    server: ResourceServer
    runs: list[str]


@pytest.fixture
async def guarded(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[Guarded]:
    runs: list[str] = []
    catalogue = guarded_catalogue(notes(runs), scopes=TABLE, declared=DECLARED)
    async with running_resource_server(tmp_path / "served", resourceserver_template, clock, catalogue) as server:
        yield Guarded(server, runs)


def outcomes(server: ResourceServer) -> list[tuple[str, str, str | None]]:
    return [(event["object"], event["outcome"], event["reason"]) for event in server.audit()]


# Authorization


@pytest.mark.threat("T-052")
@pytest.mark.anyio
async def test_a_guarded_tool_needs_its_scopes(guarded: Guarded) -> None:
    server, runs = guarded
    refused = await server.call("write_note", server.issuer.token("note:read"), text="a")
    assert refused.status_code == 403
    assert 'error="insufficient_scope"' in refused.headers["www-authenticate"]
    assert 'scope="note:write"' in refused.headers["www-authenticate"]
    assert (await server.call("write_note", None, text="a")).status_code == 401
    assert runs == []
    assert (await server.call("write_note", server.issuer.token("note:write"), text="a")).status_code == 200
    assert (await server.call("read_note", server.issuer.token("note:write"), number=1)).status_code == 200
    assert runs == ["write_note", "read_note"]


@pytest.mark.threat("T-051")
@pytest.mark.anyio
async def test_a_tool_that_is_not_in_the_table_does_not_exist(guarded: Guarded) -> None:
    server, runs = guarded
    token = server.issuer.token("note:write note:read")
    assert (await server.call("write_note", token, text="a")).status_code == 200
    answers = [await server.call(name, token) for name in ("burn_notes", "no_such_tool")]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert answers[0].json()["error"]["message"] == answers[1].json()["error"]["message"]
    assert "burn_notes" not in runs


@pytest.mark.threat("T-051")
@pytest.mark.anyio
async def test_a_tool_that_is_added_later_does_not_exist(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    existing = notes([])
    catalogue = guarded_catalogue(existing, scopes=TABLE, declared=DECLARED)
    existing.add_tool(lambda: "late", name="late_tool")
    async with running_resource_server(tmp_path / "a", resourceserver_template, clock, catalogue) as server:
        token = server.issuer.token("note:write")
        assert (await server.call("read_note", token, number=1)).status_code == 200
        assert (await server.call("late_tool", token)).status_code == 400


@pytest.mark.anyio
async def test_the_list_has_the_servers_own_descriptions(guarded: Guarded) -> None:
    server = guarded.server
    listed = {}
    for scope in ("note:read", "note:write"):
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        listed[scope] = (await server.post(body, server.issuer.token(scope))).json()["result"]["tools"]
    assert [tool["name"] for tool in listed["note:read"]] == ["look_around", "read_note"]
    assert [tool["name"] for tool in listed["note:write"]] == ["look_around", "read_note", "write_note"]
    read = listed["note:read"][1]
    (described,) = [tool for tool in await notes([]).list_tools() if tool.name == "read_note"]
    expected = described.model_dump(mode="json", by_alias=True, exclude_none=True)
    assert read == {**expected, "_meta": {"io.example/own": 1, "io.gatehouse/scopes": ["note:read"]}}


@pytest.mark.divergence("D-21")
@pytest.mark.threat("T-051")
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("prompts/list", {}),
        ("prompts/get", {"name": "summarize"}),
    ],
)
async def test_prompts_of_a_guarded_server_are_not_served(
    guarded: Guarded, method: str, params: dict[str, Any]
) -> None:
    server, runs = guarded
    token = server.issuer.token("note:write")
    listed = await server.post({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}, token)
    answer = await server.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, token)
    assert (listed.status_code, answer.status_code, answer.json()["error"]["code"]) == (200, 200, -32601)
    assert runs == []


@pytest.mark.divergence("D-21")
@pytest.mark.threat("T-051")
@pytest.mark.anyio
async def test_the_only_resource_of_a_guarded_server_is_the_catalogue(guarded: Guarded) -> None:
    server, runs = guarded
    token = server.issuer.token("note:write")

    async def ask(method: str, **params: str) -> httpx2.Response:
        return await server.post({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}, token)

    listed = await ask("resources/list")
    assert [resource["uri"] for resource in listed.json()["result"]["resources"]] == ["gatehouse://catalogue"]
    assert (await ask("resources/read", uri="gatehouse://catalogue")).status_code == 200
    unknown = await ask("resources/read", uri="notes://all")
    assert (unknown.status_code, "result" in unknown.json()) == (400, False)
    assert runs == []


@pytest.mark.threat("T-052")
@pytest.mark.anyio
@pytest.mark.parametrize("verified", [True, False])
async def test_with_the_gate_removed_a_guarded_tool_is_still_refused(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, verified: bool
) -> None:
    settings = settings_in(tmp_path, database_url=resourceserver_template.install(tmp_path))
    database, admin_database = RequestDatabase(settings.database), Database(settings.database)
    audit, runs = AuditWriter(admin_database.engine, AuditRows(audit_event, audit_keys, clock)), []
    catalogue = guarded_catalogue(notes(runs), scopes=TABLE, declared=DECLARED)
    tools = ToolDispatch(catalogue, database, audit, IdempotencyKeys(database, clock), clock)
    server = build_server(catalogue, tools, audit, settings.resource)
    codes = []
    async with without_gate(server, proven("note:read") if verified else nothing) as http:
        for name, arguments in (("read_note", {"number": 1}), ("write_note", {"text": "a"}), ("burn_notes", {})):
            answer = await ask(http, "2026-07-28", "tools/call", name=name, arguments=arguments)
            codes.append(answer["error"]["code"] if "error" in answer else answer["result"]["isError"])
    assert codes == ([False, -31043, -32602] if verified else [-31041] * 3)
    assert runs == (["read_note"] if verified else [])
    audit.close()
    admin_database.close()
    database.close()


# What tools and callers see


@pytest.mark.anyio
async def test_the_result_of_a_guarded_tool_is_unchanged(guarded: Guarded) -> None:
    server = guarded.server
    for kind in ("b", "error"):
        answer = await server.call("write_note", server.issuer.token("note:write"), text="a", kind=kind)
        result = answer.json()["result"]
        assert result == {
            "content": [{"type": "text", "text": f"{kind}: a", "_meta": {"io.example/line": 1}}],
            "structuredContent": {"kind": kind},
            "isError": kind == "error",
        }
    assert outcomes(server) == [
        ("write_note", "allowed", None),
        ("write_note", "failed", "the tool returned an error"),
    ]


@pytest.mark.threat("T-056")
@pytest.mark.anyio
async def test_a_guarded_tool_gets_the_caller_from_the_sdk(guarded: Guarded) -> None:
    server = guarded.server
    for client in ("agent_1", "agent_2"):
        token = server.issuer.token("note:read", client_id=client, sub=client)
        assert await server.result("read_note", token, number=3) == {"text": "note 3", "of": client}
    assert get_access_token() is None


@pytest.mark.threat("T-055")
@pytest.mark.anyio
async def test_no_token_reaches_a_guarded_tool(guarded: Guarded) -> None:
    server = guarded.server
    token = server.issuer.token("note:read", workspace_id="wks_1")
    seen = str(await server.result("look_around", token))
    assert "scopes=['note:read']" in seen
    assert "'workspace_id': 'wks_1'" in seen
    assert "AccessToken(token=''," in seen
    assert "(None, None, {}, " in seen
    assert not any(part in seen for part in token.split("."))


@pytest.mark.anyio
async def test_guarded_tools_see_the_lifespan_of_their_server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    lives: list[str] = []

    @asynccontextmanager
    async def lifespan(_: MCPServer[Any]) -> AsyncIterator[dict[str, str]]:
        lives.append("begun")
        yield {"pool": "open"}
        lives.append("ended")

    catalogue = guarded_catalogue(notes([], lifespan=lifespan), scopes=TABLE, declared=DECLARED)
    async with running_resource_server(tmp_path / "a", resourceserver_template, clock, catalogue) as server:
        assert "{'pool': 'open'}" in str(await server.result("look_around", server.issuer.token("note:read")))
    assert lives == ["begun", "ended"]


# What they do not see


@pytest.mark.divergence("D-21")
@pytest.mark.threat("T-057")
@pytest.mark.anyio
@pytest.mark.parametrize(
    ("tool", "arguments", "told"),
    [
        pytest.param("read_note", {"number": SECRET}, "number: Input should be a valid integer", id="type"),
        pytest.param("read_note", {SECRET: 1}, "number: Field required", id="name"),
        pytest.param("write_note", {"text": SECRET}, "text: is not valid", id="validator that quotes"),
        pytest.param("write_note", {"text": "a", "kind": "nested"}, "Report the request id", id="nested validation"),
        pytest.param("write_note", {"text": "a", "kind": "broken"}, "Report the request id", id="exception"),
        pytest.param("write_note", {"text": "a", "kind": "protocol"}, "Report the request id", id="protocol error"),
        pytest.param("write_note", {"text": "a", "kind": "asking"}, "requests input from its caller", id="dialogue"),
        pytest.param("write_note", {"text": "a", "kind": "refused"}, "full. Tear out a page", id="meant for the agent"),
    ],
)
async def test_errors_of_a_guarded_server_quote_nothing(
    guarded: Guarded, caplog: pytest.LogCaptureFixture, tool: str, arguments: dict[str, Any], told: str
) -> None:
    server = guarded.server
    token = server.issuer.token("note:write")
    with caplog.at_level(logging.CRITICAL, "gatehouse.resourceserver.dispatch.tools"):
        failure = await server.failure(tool, token, **arguments)
    assert told in failure
    assert SECRET not in failure
    assert "pydantic" not in failure
    (event,) = server.audit()
    assert (event["object"], event["outcome"]) == (tool, "failed")
    assert SECRET not in str(event)


# Servers that cannot be guarded


class Intercepting(Extension):
    """Runs before every call."""

    identifier = "io.example/intercepting"

    async def intercept_tool_call(
        self, params: CallToolRequestParams, ctx: ServerRequestContext[Any, Any], call_next: Any
    ) -> Any:
        """Let it pass."""
        return await call_next(ctx)


async def own_middleware(ctx: Any, call_next: Any) -> Any:
    """Let it pass."""
    return await call_next(ctx)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"red_note": ["note:read"]}, r"server Notes: the table names the tool red_note, .* It has: burn_notes, look_"),
        ({"read_note": ["note:raed"]}, r"server Notes: read_note needs the scope note:raed, which is not declared"),
        ({"read_note": []}, r"server Notes: read_note has no scopes"),
        (
            {"read_note": "note:read"},
            r'server Notes: read_note has a string as its scopes. Write a list: \["note:read"\]',
        ),
    ],
)
def test_an_invalid_table_stops_the_start(change: dict[str, Sequence[str]], problem: str) -> None:
    assert guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED).tools.keys() == TABLE.keys()
    with pytest.raises(InvalidCatalogue, match=problem):
        guarded_catalogue(notes([]), scopes={**TABLE, **change}, declared=DECLARED)


@pytest.mark.threat("T-054")
@pytest.mark.parametrize(
    "options", [{"middleware": [own_middleware]}, {"extensions": [Intercepting()]}], ids=["middleware", "extension"]
)
def test_a_server_with_its_own_middleware_stops_the_start(options: dict[str, Any]) -> None:
    assert guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED)
    with pytest.raises(InvalidCatalogue, match=r"server Notes: its .* (own_middleware|Intercepting) would be"):
        guarded_catalogue(notes([], **options), scopes=TABLE, declared=DECLARED)


@pytest.mark.threat("T-054")
def test_a_guarded_tool_may_have_a_limit_of_its_own() -> None:
    limits = {"read_note": "30/minute", "write_note": "off"}
    tools = guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED, limits=limits).tools
    shown = {name: str(tool.limit) for name, tool in tools.items()}
    assert shown == {"read_note": "30/minute", "write_note": "off", "look_around": "None"}


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"read_note": "30"}, "server Notes: read_note has the limit '30'"),
        ({"burn_notes": "30/minute"}, "server Notes: burn_notes has a limit, and is not in the table of scopes"),
    ],
)
def test_an_invalid_limit_of_a_guarded_tool_stops_the_start(limits: dict[str, str], problem: str) -> None:
    with pytest.raises(InvalidCatalogue, match=problem):
        guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED, limits=limits)


def test_a_server_that_verifies_tokens_itself_stops_the_start() -> None:
    """CWE-636: its verifier may refuse what the guard accepts, and its scopes hold for every tool."""
    settings = AuthSettings.model_validate(
        {
            "issuer_url": ISSUER,
            "resource_server_url": RESOURCE,
            "required_scopes": ["note:audited"],
            "validate_token_resource": True,
        }
    )
    assert guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED)
    with pytest.raises(InvalidCatalogue, match=r"server Notes: its own auth would be bypassed\. .* without auth="):
        guarded_catalogue(notes([], auth=settings, token_verifier=Verifier()), scopes=TABLE, declared=DECLARED)


def test_a_name_that_no_header_can_carry_stops_the_start() -> None:
    server = notes([])
    server.add_tool(lambda: "a", name="read note")
    with pytest.raises(InvalidCatalogue, match="server Notes: 'read note' is not a valid tool name"):
        guarded_catalogue(server, scopes={"read note": ["note:read"]}, declared=DECLARED)


@pytest.mark.anyio
async def test_guard_returns_the_application_of_the_guarded_catalogue(
    tmp_path: Path, resourceserver_template: Template
) -> None:
    """Also while an event loop runs: an application factory may guard a server."""
    settings = settings_in(tmp_path, database_url=resourceserver_template.install(tmp_path))
    app = guard(notes([]), scopes=TABLE, declared=DECLARED, settings=settings)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app)) as http:
        metadata = await http.get("https://mcp.example.com/.well-known/oauth-protected-resource/mcp")
        challenge = await http.post(settings.resource, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert metadata.json()["scopes_supported"] == ["note:read", "note:write"]
    assert challenge.status_code == 401
    assert isinstance(guarded_catalogue(notes([]), scopes=TABLE, declared=DECLARED), Catalogue)
