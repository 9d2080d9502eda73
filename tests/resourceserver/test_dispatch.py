"""Dispatch: with the gate removed, it still refuses.

Each test drives the SDK's server that dispatch builds, without the gate before it: in memory by the SDK's client, or
over HTTP by the SDK's session manager alone.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mcp import Client
from mcp.server import Server
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel
from support.audit import audit_keys
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import RESOURCE, Issuer, ResourceServer, running_resource_server, settings_in
from support.ungated import ask, claims_of, proven, without_gate

from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import VerifiedRequest
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, ToolGroup
from gatehouse.resourceserver.catalogue import declaration as declarations
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKeys
from gatehouse.resourceserver.dispatch.server import build_server
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.service.audit.events import find_events
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.audit.writer import AuditWriter

pytestmark = pytest.mark.anyio


class Answer(BaseModel):
    """The result of the tools."""

    text: str


@dataclass(frozen=True)
class Dispatched:
    """Dispatch without a gate, and the tools that it has run."""

    server: Server[Any]
    runs: list[str]
    admin_database: Database

    def audit(self) -> list[dict[str, Any]]:
        with self.admin_database.write() as session:
            return [dict(row) for row in find_events(session.connection(), audit_event)]


def recording_catalogue(runs: list[str]) -> Catalogue:
    """Return a catalogue whose tools only record that they ran."""
    group = ToolGroup()

    @group.tool(scopes=ANY_VALID_TOKEN, read_only=True)
    async def greet() -> Answer:
        """Greet any caller."""
        runs.append("greet")
        return Answer(text="hello")

    @group.tool(scopes=["door:open"], read_only=False)
    async def open_door() -> Answer:
        """Open the door."""
        runs.append("open_door")
        return Answer(text="open")

    @group.tool(scopes=["door:open"], read_only=False)
    async def break_door() -> Answer:
        """Fail unexpectedly."""
        raise RuntimeError("postgresql://admin:hunter2@db/var/lib")

    scopes = [
        declarations.Scope("door:open", "Open doors", ("door:see",)),
        declarations.Scope("door:see", "See doors"),
    ]
    return Catalogue("test", scopes, [group])


@pytest.fixture
async def dispatched(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[Dispatched]:
    settings = settings_in(tmp_path, database_url=resourceserver_template.install(tmp_path))
    database, admin_database = RequestDatabase(settings.database), Database(settings.database)
    audit, runs = AuditWriter(admin_database.engine, AuditRows(audit_event, audit_keys, clock)), []
    keys = IdempotencyKeys(database, clock)
    catalogue = recording_catalogue(runs)
    server = build_server(catalogue, ToolDispatch(catalogue, database, audit, keys, clock), audit, RESOURCE)
    yield Dispatched(server, runs, admin_database)
    audit.close()
    admin_database.close()
    database.close()


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("mode", ["legacy", "2026-07-28"])
async def test_a_client_in_memory_can_list_and_call_nothing(dispatched: Dispatched, mode: Any) -> None:
    async with Client(dispatched.server, mode=mode, raise_exceptions=False) as client:
        with pytest.raises(MCPError, match="No verified access token"):
            await client.list_tools()
        for tool in ("greet", "open_door", "no_such_tool"):
            with pytest.raises(MCPError, match="No verified access token"):
                await client.call_tool(tool, {})
    assert dispatched.runs == []


@pytest.mark.threat("T-020")
async def test_with_the_gate_removed_dispatch_still_refuses(dispatched: Dispatched, version: str) -> None:
    async with without_gate(dispatched.server) as http:
        for params in ({"name": "greet"}, {"name": "open_door"}, {"name": "no_such_tool"}):
            answer = await ask(http, version, "tools/call", **params)
            assert answer["error"]["code"] == -31041
        listed = await ask(http, version, "tools/list")
    assert listed["error"]["code"] == -31041
    assert "result" not in listed
    assert dispatched.runs == []


@pytest.mark.threat("T-024")
@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("resources/list", {}),
        ("resources/templates/list", {}),
        ("resources/read", {"uri": "gatehouse://catalogue"}),
        ("resources/read", {"uri": "gatehouse://nothing"}),
    ],
)
async def test_with_the_gate_removed_no_resource_is_listed_or_read(
    dispatched: Dispatched, version: str, method: str, params: dict[str, str]
) -> None:
    async with without_gate(dispatched.server) as http:
        answer = await ask(http, version, method, **params)
    assert answer["error"]["code"] == -31041
    assert "result" not in answer
    known = params.get("uri") != "gatehouse://nothing"
    async with without_gate(dispatched.server, proven()) as http:
        answer = await ask(http, version, method, **params)
    assert ("result" in answer) == known


async def test_a_bearer_token_alone_proves_nothing_to_dispatch(dispatched: Dispatched, clock: FakeClock) -> None:
    """Only the gate reads headers: dispatch accepts only what the gate has verified."""
    async with without_gate(dispatched.server) as http:
        http.headers["Authorization"] = f"Bearer {Issuer(clock).token('door:open')}"
        http.headers["gatehouse.verified_request"] = "true"
        answer = await ask(http, "2025-11-25", "tools/call", name="open_door")
    assert answer["error"]["code"] == -31041
    assert dispatched.runs == []


@dataclass
class LooksLikeOne:
    """An object with the members of a VerifiedRequest, which the gate did not make."""

    claims: AccessClaims
    request_id: str = "req_1"


@pytest.mark.parametrize(
    "junk",
    [
        pytest.param(None, id="none"),
        pytest.param(True, id="true"),
        pytest.param("agent_1", id="text"),
        pytest.param({"claims": {"scope": "door:open"}}, id="mapping"),
        pytest.param(claims_of("door:open"), id="bare claims"),
        pytest.param(LooksLikeOne(claims_of("door:open")), id="look-alike"),
        pytest.param(VerifiedRequest, id="class"),
    ],
)
async def test_junk_in_place_of_a_verified_request_is_refused(dispatched: Dispatched, version: str, junk: Any) -> None:
    async with without_gate(dispatched.server, lambda scope: verified_request.attach(scope, junk)) as http:
        called = await ask(http, version, "tools/call", name="open_door")
        listed = await ask(http, version, "tools/list")
    assert called["error"]["code"] == listed["error"]["code"] == -31041
    assert dispatched.runs == []


async def test_a_verified_request_with_the_scope_runs_the_tool(dispatched: Dispatched, version: str) -> None:
    """The control for every refusal here: the same request, with what the gate attaches."""
    async with without_gate(dispatched.server, proven("door:open")) as http:
        answer = await ask(http, version, "tools/call", name="open_door")
    assert answer["result"]["structuredContent"] == {"text": "open"}
    assert dispatched.runs == ["open_door"]
    (event,) = dispatched.audit()
    assert (event["outcome"], event["object"], event["actor"], event["jti"], event["request_id"]) == (
        *("allowed", "open_door", "agent_1", "jti-1", "req_1"),
    )


@pytest.mark.threat("T-020")
async def test_dispatch_decides_scopes_by_itself(dispatched: Dispatched, version: str) -> None:
    async with without_gate(dispatched.server, proven("door:see")) as http:
        answer = await ask(http, version, "tools/call", name="open_door")
        greeted = await ask(http, version, "tools/call", name="greet")
    assert answer["error"]["code"] == -31043
    assert answer["error"]["data"]["scope"] == "door:open"
    assert dispatched.runs == ["greet"]
    assert greeted["result"]["structuredContent"] == {"text": "hello"}
    refused = dispatched.audit()[0]
    assert (refused["outcome"], refused["object"], refused["jti"]) == ("refused", "open_door", "jti-1")


async def test_dispatch_refuses_a_tool_that_is_not_in_the_catalogue(dispatched: Dispatched, version: str) -> None:
    async with without_gate(dispatched.server, proven("door:open")) as http:
        answer = await ask(http, version, "tools/call", name="close_door")
    assert answer["error"]["code"] == -32602
    assert [(event["outcome"], event["object"]) for event in dispatched.audit()] == [("refused", "close_door")]


async def test_dispatch_lists_only_what_the_caller_may_call(dispatched: Dispatched, version: str) -> None:
    names = {}
    for scope in ("door:open", "door:see"):
        async with without_gate(dispatched.server, proven(scope)) as http:
            tools = (await ask(http, version, "tools/list"))["result"]["tools"]
            names[scope] = [tool["name"] for tool in tools]
    assert names == {"door:open": ["break_door", "greet", "open_door"], "door:see": ["greet"]}


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("prompts/list", {}),
        ("resources/subscribe", {"uri": "gatehouse://catalogue"}),
        ("completion/complete", {"ref": {"type": "ref/prompt", "name": "p"}, "argument": {"name": "a", "value": ""}}),
        ("subscriptions/listen", {"notifications": {}}),
    ],
)
async def test_dispatch_has_no_handler_for_other_methods(
    dispatched: Dispatched, version: str, method: str, params: dict[str, Any]
) -> None:
    async with without_gate(dispatched.server, proven("door:open")) as http:
        http.headers["Mcp-Name"] = params.get("uri", "")
        answer = await ask(http, version, method, **params)
    assert answer["error"]["code"] == -32601


@pytest.mark.threat("T-049")
async def test_a_broken_tool_shows_only_the_request_id(dispatched: Dispatched, version: str) -> None:
    async with without_gate(dispatched.server, proven("door:open")) as http:
        answer = await ask(http, version, "tools/call", name="break_door")
    assert answer["result"]["isError"]
    assert "req_1" in str(answer)
    assert "hunter2" not in str(answer)
    assert "Traceback" not in str(answer)
    (event,) = dispatched.audit()
    assert (event["outcome"], event["reason"]) == ("failed", "internal error: RuntimeError")


async def test_the_list_has_one_page(dispatched: Dispatched, version: str) -> None:
    async with without_gate(dispatched.server, proven("door:open")) as http:
        listed = await ask(http, version, "tools/list")
        answer = await ask(http, version, "tools/list", cursor="next")
    assert "nextCursor" not in listed["result"]
    assert answer["error"]["code"] == -32602
    assert "cursor" in answer["error"]["message"]


@pytest.mark.both_databases
async def test_an_event_that_cannot_be_recorded_is_answered_with_try_again(
    dispatched: Dispatched, version: str
) -> None:
    """Otherwise, only the caller would know of a refusal or a failure."""
    async with without_gate(dispatched.server, proven("door:see")) as http:
        before = await ask(http, version, "tools/call", name="open_door")
    with dispatched.admin_database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit_event")
    async with without_gate(dispatched.server, proven("door:see")) as http:
        refused = await ask(http, version, "tools/call", name="open_door")
        unknown = await ask(http, version, "tools/call", name="close_door")
    async with without_gate(dispatched.server, proven("door:open")) as http:
        failed = await ask(http, version, "tools/call", name="break_door")
    assert before["error"]["code"] == -31043
    assert refused["error"]["code"] == unknown["error"]["code"] == -31053
    assert failed["result"]["isError"]
    assert "Try again" in failed["result"]["content"][0]["text"]
    assert dispatched.runs == []


async def test_the_claims_of_one_request_do_not_reach_the_next(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """Stateless: a caller with fewer rights gets nothing from the previous caller."""
    runs: list[str] = []
    async with running_resource_server(
        tmp_path / "served", resourceserver_template, clock, recording_catalogue(runs)
    ) as server:
        assert await answers(server, "door:open") == 200
        assert await answers(server, "door:see") == 403
        assert await answers(server, "door:open") == 200
    assert runs == ["open_door", "open_door"]


async def answers(server: ResourceServer, scope: str) -> int:
    return int((await server.call("open_door", server.issuer.token(scope))).status_code)
