"""A call is answered alike whether it is made directly or through the SDK, and leaves its event however it ends."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, NoReturn

import anyio
import httpx2
import pytest
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp_types.methods import validate_client_request
from pydantic import BaseModel, Field, JsonValue
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server

from gatehouse.resourceserver.app import build_app
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, ProviderCall, Scope, ToolFailed, ToolGroup
from gatehouse.resourceserver.catalogue import provider as declare_provider
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.resourceserver.dispatch import routing
from gatehouse.resourceserver.dispatch.server import build_server
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.resourceserver.json_rpc import INSUFFICIENT_SCOPE, INVALID_PARAMS, UNAVAILABLE, UNKNOWN_TOOL_MESSAGE
from gatehouse.shared.service.audit.events import find_events
from gatehouse.shared.service.audit.writer import AuditUnavailable

pytestmark = pytest.mark.anyio

HANDSHAKE = ("2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25")
MODERN = "2026-07-28"
VERSIONS = (*HANDSHAKE, MODERN)

META: dict[str, Any] = {
    "io.modelcontextprotocol/protocolVersion": MODERN,
    "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
    "io.modelcontextprotocol/clientCapabilities": {},
}


class Echo(BaseModel):
    """What was sent."""

    value: JsonValue
    count: int | None = None


class Ledger:
    """What a transactional provider makes."""


@declare_provider(transactional=True)
def open_ledger(_: ProviderCall) -> Ledger:
    return Ledger()


async def echo(value: JsonValue = None, count: int | None = None) -> Echo:
    """Return what was sent."""
    return Echo(value=value, count=count)


async def refuse() -> Echo:
    """Fail with a public text."""
    raise ToolFailed("Not today: Ünïcode \u2028 & <b>.")


async def crash() -> Echo:
    """Fail unexpectedly."""
    raise RuntimeError("secret")


async def break_off() -> Echo:
    """Return what cannot be sent."""
    return Echo(value=float("nan"))


async def located(region: Annotated[str, Field(json_schema_extra={"x-mcp-header": "Region"})]) -> Echo:
    """Have an argument that a header repeats."""
    return Echo(value=region)


def read(ledger: Ledger) -> Echo:
    """Read in a transaction."""
    return Echo(value="read")


def write(ledger: Ledger, fails: bool) -> Echo:
    """Write in a transaction."""
    if fails:
        raise ToolFailed("It did not work.")
    return Echo(value="written")


async def elsewhere() -> Echo:
    """Write outside of a transaction."""
    return Echo(value="done")


class Tools:
    """The tools, and what a test waits for in them."""

    def __init__(self) -> None:
        self.begun = asyncio.Event()

    def catalogue(self) -> Catalogue:
        async def wait() -> Echo:
            """Wait forever."""
            self.begun.set()
            await anyio.sleep_forever()
            return Echo(value="waited")

        group = ToolGroup()
        for tool in (echo, refuse, crash, break_off, located, read, wait):
            group.tool(scopes=ANY_VALID_TOKEN, read_only=True)(tool)
        group.tool(scopes=ANY_VALID_TOKEN)(write)
        group.tool(scopes=["a:b"])(elsewhere)
        return Catalogue("test", [Scope("a:b", "Nothing")], [group], providers={Ledger: open_ledger})


@pytest.fixture
def tools(anyio_backend: str) -> Tools:
    return Tools()


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, tools: Tools
) -> AsyncIterator[ResourceServer]:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, tools.catalogue()) as server:
        yield server


class SdkNotReached:
    """Takes the place of the SDK's session manager."""

    async def handle_request(self, *_: Any) -> NoReturn:
        raise AssertionError("the call reached the SDK")


@asynccontextmanager
async def composed(server: ResourceServer, **changes: Any) -> AsyncIterator[httpx2.AsyncClient]:
    """Return a client of the same server, whose router is composed differently."""
    services = replace(server.services, router=replace(server.services.router, **changes))
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(build_app(services))) as http:
        yield http


def request_of(version: str, name: Any = "echo", **arguments: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """Return the body and headers of a call in a protocol version."""
    body: dict[str, Any] = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": name, "arguments": arguments},
    }
    headers = {
        "Content-Type": "application/json",
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": version,
    }
    if version == MODERN:
        body["params"]["_meta"] = dict(META)
        headers |= {"Mcp-Method": "tools/call", "Mcp-Name": str(name)}
    return body, headers


Change = Callable[[dict[str, Any], dict[str, str]], None]


def _set(*path: str, to: Any) -> Change:
    """Change a member of the body."""

    def change(body: dict[str, Any], _: dict[str, str]) -> None:
        *parents, name = path
        for parent in parents:
            body = body.setdefault(parent, {})
        body[name] = to

    return change


def _drop(*path: str) -> Change:
    """Remove a member of the body."""

    def change(body: dict[str, Any], _: dict[str, str]) -> None:
        *parents, name = path
        for parent in parents:
            body = body.get(parent, {})
        body.pop(name, None)

    return change


def _header(name: str, value: str | None) -> Change:
    """Change a header, or remove it."""

    def change(_: dict[str, Any], headers: dict[str, str]) -> None:
        headers.pop(name, None)
        if value is not None:
            headers[name] = value

    return change


def _call(name: str, **arguments: Any) -> Change:
    def change(body: dict[str, Any], headers: dict[str, str]) -> None:
        body["params"] |= {"name": name, "arguments": arguments}
        if "Mcp-Name" in headers:
            headers["Mcp-Name"] = name

    return change


ARGUMENTS: dict[str, Any] = {
    "text": "plain",
    "unicode": 'Ünï "quoted" \\ \u2028 \x7f 😀',
    "control characters": "\x00\x08\x0c\t\r\n\x1f",
    "true": True,
    "null": None,
    "integers": [0, -1, 2**53, 2**63, 2**70, -(2**64)],
    "floats": [0.1, -0.0, 1.0, 1e16, 1e22, 1.5e-7, 5e-324, 1.7976931348623157e308, 123456789012345680.0],
    "nested": {"a": [{"b": [1, {"c": None}]}, []], "": {}, "ü": "é"},
    "large": ["x" * 1000] * 300,
    "many objects": [{"n": n} for n in range(300)],
    "deep": json.loads("[" * 40 + "]" * 40),
    "too deep for the result": json.loads("[" * 60 + "]" * 60),
    "too deep for one parser": json.loads("[" * 220 + "]" * 220),
}

GOOD: dict[str, Change] = {
    **{f"argument: {name}": _call("echo", value=value) for name, value in ARGUMENTS.items()},
    "whole float for an integer": _call("echo", count=5.0),
    "no arguments": _drop("params", "arguments"),
    "null arguments": _set("params", "arguments", to=None),
    "string id": _set("id", to="id-ü-😀"),
    "empty id": _set("id", to=""),
    "large id": _set("id", to=2**63 - 1),
    "negative id": _set("id", to=-1),
    "unknown members": _set("more", to={"a": 1}),
    "unknown members of params": _set("params", "more", to=[1]),
    "a task": _set("params", "task", to={"ttl": 1}),
    "a progress token": _set("params", "_meta", to={**META, "progressToken": "p"}),
    "a progress token of a number": _set("params", "_meta", to={**META, "progressToken": 5}),
    "a long member of _meta": _set("params", "_meta", to={**META, "io.example/x": "x" * 3000}),
    "members of _meta": _set("params", "_meta", to={**META, "traceparent": "00-1", "io.example/x": {"a": [1]}}),
    "wrong arguments": _call("echo", count="five", other=1),
    "a public failure": _call("refuse"),
    "an unexpected failure": _call("crash"),
    "a result that cannot be sent": _call("break_off"),
    "a read": _call("read"),
    "a write": _call("write", fails=False),
    "a write with an idempotency key of another type": _call("write", fails=False, idempotency_key=7),
    "a write that fails": _call("write", fails=True),
    "a tool that writes elsewhere": _call("elsewhere"),
    "an argument with a header, without it": _call("located", region="eu"),
    "no Accept": _header("Accept", None),
    "JSON only": _header("Accept", "application/json"),
    "any type": _header("Accept", "*/*"),
    "content type in capitals": _header("Content-Type", "Application/JSON; charset=UTF-8"),
    "a session id": _header("Mcp-Session-Id", "abc"),
    "a parameter header": _header("Mcp-Param-Region", "eu"),
    "an encoded name": _header("Mcp-Name", "=?base64?ZWNobw==?="),
}

BAD: dict[str, Change] = {
    "another method header": _header("Mcp-Method", "tools/list"),
    "no method header": _header("Mcp-Method", None),
    "another name header": _header("Mcp-Name", "crash"),
    "no name header": _header("Mcp-Name", None),
    "a broken name header": _header("Mcp-Name", "=?base64?%?="),
    "a name header that is not ASCII": _header("Mcp-Name", "=?base64?\xe9?="),
    "a task that equals a valid one to Python": _set("params", "task", to={"ttl": True}),
    "an unknown version": _header("MCP-Protocol-Version", "2030-01-01"),
    "an empty version": _header("MCP-Protocol-Version", ""),
    "no version header": _header("MCP-Protocol-Version", None),
    "another version header": _header("MCP-Protocol-Version", "2025-06-18"),
    "no _meta": _drop("params", "_meta"),
    "null _meta": _set("params", "_meta", to=None),
    "_meta of another type": _set("params", "_meta", to=[]),
    "no capabilities": _drop("params", "_meta", "io.modelcontextprotocol/clientCapabilities"),
    "capabilities of another type": _set("params", "_meta", "io.modelcontextprotocol/clientCapabilities", to=[]),
    "another version": _set("params", "_meta", "io.modelcontextprotocol/protocolVersion", to="2025-11-25"),
    "a version of another type": _set("params", "_meta", "io.modelcontextprotocol/protocolVersion", to=7),
    "client info of another type": _set("params", "_meta", "io.modelcontextprotocol/clientInfo", to="x"),
    "a broken capability": _set(
        "params", "_meta", "io.modelcontextprotocol/clientCapabilities", to={"sampling": "yes"}
    ),
    "a progress token of another type": _set("params", "_meta", to={**META, "progressToken": 1.5}),
    "a broken task": _set("params", "task", to="now"),
    "input responses of another type": _set("params", "inputResponses", to=7),
    "a request state of another type": _set("params", "requestState", to=7),
    "arguments of another type": _set("params", "arguments", to=[]),
    "an unknown tool": _call("nothing"),
    "a tool without its scope": _call("elsewhere"),
    "null params": _set("params", to=None),
    "a null name": _set("params", "name", to=None),
    "a fraction as id": _set("id", to=1.5),
    "a null id": _set("id", to=None),
    "an id that is too long": _set("id", to="x" * 129),
    "a notification": _drop("id"),
    "another JSON-RPC version": _set("jsonrpc", to="1.0"),
    "a type that is not JSON": _header("Accept", "text/html"),
    "another content type": _header("Content-Type", "text/plain"),
}


def comparable(response: httpx2.Response) -> Any:
    """Return the status, headers and body of a response, without its request id."""
    request_id = response.headers["x-request-id"]
    headers = {name: value for name, value in response.headers.items() if name != "x-request-id"}
    return response.status_code, headers, response.content.replace(request_id.encode(), b"REQUEST-ID")


async def events_of(server: ResourceServer, response: httpx2.Response) -> Any:
    # The refusal is on disk after everything that was recorded before.
    await server.call("no_such_tool", server.issuer.token("a:b"))
    events = server.audit(request_id=response.headers["x-request-id"])
    return [(event["action"], event["outcome"], event["object"], event["reason"], event["detail"]) for event in events]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("kind", ["good", "bad"])
async def test_both_ways_give_the_same_answers_and_events(server: ResourceServer, version: str, kind: str) -> None:
    """Byte for byte, in every protocol version."""
    token, without_scope = server.issuer.token("a:b"), server.issuer.token("c:d")
    async with composed(server) as direct, composed(server, direct=frozenset()) as through_sdk:
        # The validation of the first call is cached.
        for name, change in {"a plain call": lambda *_: None, **(GOOD if kind == "good" else BAD)}.items():
            body, headers = request_of(version)
            change(body, headers)
            headers["Authorization"] = f"Bearer {without_scope if name == 'a tool without its scope' else token}"
            content = json.dumps(body).encode()
            lines = [(header.encode(), value.encode("latin-1")) for header, value in headers.items()]
            answers = []
            for http in (direct, through_sdk):
                response = await http.post(server.settings.resource, content=content, headers=lines)
                answers.append((comparable(response), await events_of(server, response)))
            assert answers[0] == answers[1], (name, version)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("served", ["echo", "elsewhere"], ids=["a missing scope", "an unknown tool"])
@pytest.mark.parametrize("recorded", [True, False], ids=["recorded", "not recorded"])
async def test_dispatch_refuses_alike_what_a_mistaken_gate_admits(
    server: ResourceServer, monkeypatch: pytest.MonkeyPatch, version: str, served: str, recorded: bool
) -> None:
    """Byte for byte, and with the event of a refusal."""
    group = ToolGroup()
    group.tool(scopes=["a:b"], read_only=True)({"echo": echo, "elsewhere": elsewhere}[served])
    strict = Catalogue("test", [Scope("a:b", "Nothing")], [group])
    parts = server.services
    tools = ToolDispatch(strict, parts.database, parts.audit, parts.idempotency_keys, parts.clock)
    sessions = StreamableHTTPSessionManager(
        build_server(strict, tools, parts.audit, server.settings.resource), json_response=True, stateless=True
    )
    body, headers = request_of(version)
    headers["Authorization"] = f"Bearer {server.issuer.token('c:d')}"
    answers, events = [], []
    async with (
        sessions.run(),
        composed(server, tools=tools) as direct,
        composed(server, sessions=sessions, direct=frozenset()) as through_sdk,
    ):
        for http in (direct, through_sdk):
            with monkeypatch.context() as patched:
                if not recorded:
                    patched.setattr(parts.audit, "commit_async", _fail_to_record)
                response = await http.post(server.settings.resource, json=body, headers=headers)
            answers.append(comparable(response))
            events.append(await events_of(server, response))
    assert answers[0] == answers[1]
    error = json.loads(answers[0][2])["error"]
    if recorded:
        assert error["code"] == {"echo": INSUFFICIENT_SCOPE, "elsewhere": INVALID_PARAMS}[served]
        reason = {"echo": "needs a:b", "elsewhere": UNKNOWN_TOOL_MESSAGE}[served]
        assert events[0] == [("tool.call", "refused", "echo", reason, {})] == events[1][:1]
    else:
        assert error["code"] == UNAVAILABLE


async def _fail_to_record(*_: Any) -> NoReturn:
    raise AuditUnavailable("the disk is full")


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_regular_call_does_not_reach_the_sdk(server: ResourceServer, version: str) -> None:
    async with composed(server, sessions=SdkNotReached(), streams=SdkNotReached()) as http:
        for change in (*(GOOD[f"argument: {name}"] for name in ("text", "floats", "large")), GOOD["wrong arguments"]):
            body, headers = request_of(version)
            change(body, headers)
            headers["Authorization"] = f"Bearer {server.issuer.token('a:b')}"
            response = await http.post(server.settings.resource, json=body, headers=headers)
            assert response.status_code == 200
            assert "result" in response.json()


@pytest.mark.parametrize(
    ("change", "validations"),
    [
        (_call("echo", value="another"), 1),
        (_set("params", "_meta", "progressToken", to="another"), 1),
        (_set("params", "_meta", "traceparent", to="another"), 2),
        (_call("echo", value="x" * 3000), 2),
    ],
    ids=["arguments", "progress token", "_meta", "a large body"],
)
async def test_a_call_is_validated_once_but_for_its_arguments_and_progress_token(
    server: ResourceServer,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    change: Change,
    validations: int,
) -> None:
    validated = []

    def validate(method: str, version: str, params: Any) -> None:
        validated.append(method)
        validate_client_request(method, version, params)

    monkeypatch.setattr(routing, "validate_client_request", validate)
    for changed in (False, True):
        body, headers = request_of(MODERN, value="first")
        # No other test has sent it.
        body["params"]["_meta"] |= {"progressToken": "first", "io.example/test": request.node.name}
        if changed:
            change(body, headers)
        response = await server.post(body, server.issuer.token("a:b"), headers)
        assert "result" in response.json()
    assert len(validated) == validations


async def test_only_the_last_valid_combinations_are_cached(
    server: ResourceServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routing, "_MAX_VALID", 2)
    validated = []

    def validate(method: str, version: str, params: Any) -> None:
        validated.append(params["_meta"]["io.example/test"])
        validate_client_request(method, version, params)

    monkeypatch.setattr(routing, "validate_client_request", validate)
    for name in ("a", "b", "a", "c", "b", "a"):
        body, headers = request_of(MODERN)
        body["params"]["_meta"] |= {"io.example/test": name}
        response = await server.post(body, server.issuer.token("a:b"), headers)
        assert "result" in response.json()
    assert validated == ["a", "b", "c", "a"]


@pytest.mark.parametrize(("first", "second"), [(1, True), (1, 1.0), ("1", 1), (0.0, -0.0)])
async def test_a_cached_validation_is_not_that_of_another_value(
    server: ResourceServer, monkeypatch: pytest.MonkeyPatch, first: object, second: object
) -> None:
    validated = []

    def validate(method: str, version: str, params: Any) -> None:
        validated.append(method)
        validate_client_request(method, version, params)

    monkeypatch.setattr(routing, "validate_client_request", validate)
    for value in (first, second):
        body, headers = request_of(MODERN)
        body["params"]["_meta"] |= {"io.example/test": value}
        await server.post(body, server.issuer.token("a:b"), headers)
    assert len(validated) == 2


# The end of a call


@pytest.mark.parametrize("version", ["2025-11-25", MODERN])
async def test_a_call_in_flight_at_shutdown_leaves_its_event(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, tools: Tools, version: str
) -> None:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, tools.catalogue()) as server:
        body, headers = request_of(version, "wait")
        call = asyncio.create_task(server.post(body, server.issuer.token("a:b"), headers))
        await tools.begun.wait()
        settings = server.settings
    await asyncio.wait([call])
    assert call.cancelled()
    with closing(Database(settings.database)) as database, database.read() as session:
        (event,) = find_events(session.connection(), audit_event, action="tool.call")
    assert (event["outcome"], event["reason"]) == ("failed", "the connection was closed before the end")


@pytest.mark.parametrize("tool", ["whoami", "list_environments", "create_environment"])
async def test_a_call_cancelled_at_any_await_leaves_at_most_one_event(
    resourceserver: ResourceServer, tool: str
) -> None:
    """gunicorn cancels the task of a request 3 s after its connection was closed, whatever it awaits."""
    token = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace())
    for turns in range(40):
        arguments = {"name": f"cut-off-{turns}"} if tool == "create_environment" else {}
        call = asyncio.create_task(resourceserver.call(tool, token, **arguments))
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await asyncio.wait([call])
    # The refusal is on disk after everything that was recorded before.
    await resourceserver.call("no_such_tool", token)
    *events, _ = resourceserver.audit(action="tool.call")
    assert len({event["request_id"] for event in events}) == len(events)
    assert {event["outcome"] for event in events} <= {"allowed", "failed"}
    if tool == "create_environment":
        listed = await resourceserver.result("list_environments", token)
        created = [event for event in events if event["outcome"] == "allowed"]
        assert len(listed["environments"]) == len(created)
