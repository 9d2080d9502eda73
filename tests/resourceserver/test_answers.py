"""What is sent: a result is proven before its event is recorded."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from jsonschema import Draft202012Validator
from mcp.server.mcpserver import MCPServer
from mcp_types import AudioContent, CallToolResult, TextContent
from pydantic import BaseModel, ConfigDict, Field, RootModel, field_serializer
from pydantic.alias_generators import to_camel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, modern_request, running_resource_server
from support.results import HALF, Closed, Node

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.environments import create_environment
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, Scope, ToolFailed, ToolGroup
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue
from gatehouse.shared.protocol.encoding import MAX_JSON_DEPTH, parse_json

REPLACED = "caf\ufffd"
"""Text, which a client can read."""


class Result(BaseModel):
    """A result that can hold what JSON cannot."""

    number: float = 0.0
    text: str = ""
    members: dict[str, str] = {}
    data: bytes = b""
    anything: Any = None


class NullForNan(BaseModel):
    """A result whose author decided what is written for NaN."""

    model_config = ConfigDict(ser_json_inf_nan="null")
    anything: Any


class Converted(BaseModel):
    """A result whose member names exist only in its JSON."""

    tags: list[str]

    @field_serializer("tags", when_used="json")
    def write(self, tags: list[str]) -> dict[str, int]:
        """Return the tags as members."""
        return dict.fromkeys(tags, 1)


class Camel(BaseModel):
    """A result with aliases."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)
    full_name: str
    from_: str = Field("x", serialization_alias="from")


class More(Closed):
    """A subclass with another member."""

    more: str = "more"


class Either(RootModel[Camel | Node]):
    """One of two objects."""


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


UNSERVABLE: dict[str, Any] = {
    "nan": Result(number=float("nan")),
    "infinity": Result(number=float("-inf")),
    "half": Result(text=HALF),
    "bytes": Result(data=b"\xff\xfe"),
    "any_nan": Result(anything=float("nan")),
    "any_infinity": Result(anything=[{"x": (1.0, float("-inf"))}]),
    "any_model_nan": Result(anything=Result(number=float("inf"))),
    "any_bytes": Result(anything={"x": b"\xc3"}),
    "any_bytes_name": Result(anything={b"\xc3": "x"}),
    "any_half_name": Result(anything={HALF: 1}),
    "half_name": Result(members={HALF: "x"}),
    "half_and_replacement": Result(members={HALF: "x", REPLACED: "y"}),
    "converted_half_name": Converted(tags=["caf\ufffd", HALF]),
    "deep": Result(anything=deep(MAX_JSON_DEPTH)),
    "object": Result(anything=object()),
    "wrong_member": Result.model_construct(number="one"),
    "missing": Closed.model_construct(),
    "another_model": Node(name="a"),
    "dict": {"text": "x"},
    "none": None,
}

SERVABLE: dict[str, Any] = {
    "camel": Camel(full_name="a/b"),
    "more": More(text="x"),
    "tree": Node(name="a", children=[Node(name="b", children=[Node(name="c")])]),
    "either": Either(Camel(full_name="a/b")),
    "null_for_nan": NullForNan(anything=float("nan")),
    "replacement": Result(members={REPLACED: REPLACED}, anything=[{REPLACED: 1.5}, {2: None}]),
    "annotated": Result(anything=deep(MAX_JSON_DEPTH - 1), text="\U0001f600\x00"),
}

DECLARED = {
    "converted_half_name": Converted,
    "more": Closed,
    "missing": Closed,
    "annotated": Annotated[Result, Field(description="The result.")],
}
"""The declared types that are not those of the values."""


def catalogue() -> Catalogue:
    """Return a catalogue with a tool for every value, and one that writes and returns any of them."""
    group = ToolGroup()

    def add(name: str, value: Any) -> None:
        async def tool() -> Any:
            """Return a value."""
            return value

        declared = DECLARED.get(name, Result if name in UNSERVABLE else type(value))
        tool.__name__, tool.__annotations__ = name, {"return": declared}
        group.tool(scopes=ANY_VALID_TOKEN, read_only=True)(tool)

    for name, value in {**UNSERVABLE, **SERVABLE}.items():
        add(name, value)

    @group.tool(scopes=ANY_VALID_TOKEN)
    def write(directory: Directory, kind: str) -> Result:
        """Create an environment, and return a value."""
        create_environment(directory, kind.replace("_", "-"), "staging")
        value: Result = UNSERVABLE.get(kind, Result())
        return value

    @group.tool(scopes=ANY_VALID_TOKEN)
    async def send(kind: str) -> Result:
        """Change something elsewhere, and return a value."""
        value: Result = UNSERVABLE.get(kind, Result())
        return value

    @group.tool(scopes=ANY_VALID_TOKEN)
    async def refuse() -> Result:
        """Fail with a text that is not UTF-8."""
        raise ToolFailed(f"{HALF} is missing.")

    providers = {Directory: open_directory}
    return Catalogue("test", [Scope("a:b", "Nothing")], [group], providers=providers)


def guarded() -> Catalogue:
    server: MCPServer[Any] = MCPServer("guarded")
    results = {
        "text": CallToolResult(content=[TextContent(text=HALF)]),
        "nan": CallToolResult(content=[], structured_content={"n": float("nan")}),
        "text_bytes": CallToolResult.model_construct(content=[TextContent.model_construct(text=b"\xff")]),
        "nested_nan": CallToolResult(content=[], structured_content={"n": [{"x": float("-inf")}]}),
        "half_name": CallToolResult(content=[], structured_content={"n": {HALF: 1}}),
        "half_top_name": CallToolResult(content=[], structured_content={HALF: 1}),
        "bytes": CallToolResult(content=[], structured_content={"n": b"\xff"}),
        "meta_nan": CallToolResult(content=[], _meta={"n": float("nan")}),
        "meta_name": CallToolResult(content=[TextContent(text="", _meta={HALF: 1})]),
        "deep": CallToolResult(content=[], structured_content={"n": deep(MAX_JSON_DEPTH)}),
        "object": CallToolResult(content=[], structured_content={"n": object()}),
        "flag": CallToolResult.model_construct(content=[], is_error="perhaps"),
        "content": CallToolResult.model_construct(content=[{"type": "hologram"}]),
        "fine": CallToolResult(
            content=[AudioContent(data="aGk=", mime_type="audio/wav")], structured_content={"n": None}
        ),
    }

    @server.tool()
    async def answer(kind: str) -> CallToolResult:
        return results[kind]

    return guarded_catalogue(server, scopes={"answer": ANY_VALID_TOKEN}, declared=[Scope("a:b", "Nothing")])


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue()) as server:
        yield server


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


async def call(server: ResourceServer, version: str, token: str, tool: str, **arguments: Any) -> dict[str, Any]:
    """Return the result of a call, which is a response to the request whatever the tool returned."""
    body, headers = modern_request("tools/call", name=tool, arguments=arguments)
    if version == "2025-11-25":
        body["params"].pop("_meta")
        headers = {}
    response = await server.post(body, token, headers)
    answer = parse_json(response.content)
    assert (response.status_code, answer["id"]) == (200, 7)
    result: dict[str, Any] = answer["result"]
    return result


def outcomes(server: ResourceServer) -> list[tuple[str, str]]:
    return [(event["object"], event["outcome"]) for event in server.audit(action="tool.call")]


@pytest.mark.anyio
async def test_a_result_that_cannot_be_sent_fails_the_call_once(server: ResourceServer, version: str) -> None:
    token = server.issuer.token("a:b")
    for name in UNSERVABLE:
        result = await call(server, version, token, name)
        assert result["isError"], name
        assert result["content"][0]["text"].startswith("The result of the tool cannot be sent. "), name
        assert "Nothing was changed." in result["content"][0]["text"]
    assert outcomes(server) == [(name, "failed") for name in UNSERVABLE]
    assert all(event["reason"].startswith("the result cannot be sent: ") for event in server.audit(action="tool.call"))


@pytest.mark.anyio
async def test_a_result_is_what_its_schema_shows(server: ResourceServer, version: str) -> None:
    token = server.issuer.token("a:b")
    tools = server.services.catalogue.tools
    contents = {}
    for name in SERVABLE:
        assert tools[name].output_schema["type"] == "object"
        result = await call(server, version, token, name)
        assert not result["isError"], result
        contents[name] = result["structuredContent"]
        Draft202012Validator(tools[name].output_schema).validate(contents[name])
    assert contents["camel"] == {"fullName": "a/b", "from": "x"}
    assert contents["more"] == {"text": "x"}
    assert contents["tree"]["children"][0]["children"][0]["name"] == "c"
    assert contents["null_for_nan"] == {"anything": None}
    assert contents["replacement"]["members"] == {REPLACED: REPLACED}
    assert contents["annotated"]["text"] == "\U0001f600\x00"


@pytest.mark.anyio
@pytest.mark.both_databases
async def test_a_write_whose_result_cannot_be_sent_is_rolled_back(server: ResourceServer, version: str) -> None:
    token = server.issuer.token("a:b", workspace_id=server.create_workspace())
    for key in ({}, {"idempotency_key": "key-00001"}):
        assert not (await call(server, version, token, "write", kind=f"fine-{len(key)}", **key))["isError"]
        failed = await call(server, version, token, "write", kind="half", **key and {"idempotency_key": "key-00002"})
        assert failed["isError"]
        assert "Nothing was changed." in failed["content"][0]["text"]
    assert outcomes(server) == [("write", "allowed"), ("write", "failed")] * 2
    with server.admin_database.read() as session:
        names = session.connection().exec_driver_sql("SELECT name FROM environment ORDER BY name").scalars().all()
        assert list(names) == ["fine-0", "fine-1"]


@pytest.mark.anyio
async def test_a_change_elsewhere_is_reported_as_possible(server: ResourceServer, version: str) -> None:
    failed = await call(server, version, server.issuer.token("a:b"), "send", kind="nan")
    assert failed["isError"]
    assert "may have been carried out in part" in failed["content"][0]["text"]
    assert outcomes(server) == [("send", "failed")]


@pytest.mark.anyio
async def test_a_public_error_text_is_sent_without_half_characters(server: ResourceServer, version: str) -> None:
    failed = await call(server, version, server.issuer.token("a:b"), "refuse")
    assert failed["content"][0]["text"] == "caf? is missing."


@pytest.mark.anyio
async def test_a_guarded_result_is_proven_as_well(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, version: str
) -> None:
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, guarded()) as server:
        token = server.issuer.token("a:b")
        broken = ("text", "text_bytes", "nan", "nested_nan", "half_name", "half_top_name", "bytes", "meta_nan")
        broken += ("meta_name", "deep", "object", "flag", "content")
        for kind in broken:
            assert (await call(server, version, token, "answer", kind=kind))["isError"], kind
        fine = await call(server, version, token, "answer", kind="fine")
        assert outcomes(server) == [("answer", "failed")] * len(broken) + [("answer", "allowed")]
    assert (fine["isError"], fine["structuredContent"], fine["content"][0]["type"]) == (False, {"n": None}, "audio")
