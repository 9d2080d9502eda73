"""The messages between the gateway and an upstream: what is sent, what is accepted, and the bounds of a list."""

import json
from types import MappingProxyType
from typing import Any

import pytest
from support.upstreams import LEGACY, MODERN, TOOL, call_of

from gatehouse.resourceserver.upstream import messages
from gatehouse.resourceserver.upstream.messages import Answer, ProgressNotification, ServerRequest, read_message
from gatehouse.resourceserver.upstream.tool_list import collect_tools
from gatehouse.resourceserver.upstream.upstream import (
    OutcomeUnknown,
    UpstreamError,
    UpstreamRefused,
    UpstreamUnavailable,
)

pytestmark = pytest.mark.anyio


def read(**members: Any) -> Any:
    return read_message(json.dumps({"jsonrpc": "2.0", **members}).encode())


def refusal(**members: Any) -> str:
    with pytest.raises(OutcomeUnknown) as caught:
        read(**members)
    return str(caught.value)


# What is sent


def test_a_request_is_one_line_of_json() -> None:
    written = messages.write_request(7, "tools/call", {"name": "é\n"})
    assert written == b'{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"\\u00e9\\n"}}'


def test_a_notification_has_no_id() -> None:
    assert messages.write_notification("notifications/initialized") == (
        b'{"jsonrpc":"2.0","method":"notifications/initialized"}'
    )
    assert json.loads(messages.cancellation(7))["params"] == {"requestId": 7}


def test_a_modern_call_states_version_client_and_no_capability() -> None:
    params = messages.call_params(call_of(text="a", meta={"traceparent": "t"}), MODERN, 7)
    assert params == {
        "name": "echo",
        "arguments": {"text": "a"},
        "_meta": {
            "traceparent": "t",
            "io.modelcontextprotocol/protocolVersion": MODERN,
            "io.modelcontextprotocol/clientInfo": messages.initialize_params()["clientInfo"],
            "io.modelcontextprotocol/clientCapabilities": {},
        },
    }


async def test_only_a_caller_that_wants_progress_gets_a_token() -> None:
    async def notify(*_: object) -> None: ...

    assert messages.call_params(call_of(), LEGACY, 7) == {"name": "echo", "arguments": {}}
    assert messages.call_params(call_of(notify=notify), LEGACY, 7)["_meta"] == {"progressToken": 7}
    assert messages.call_params(call_of(notify=notify), MODERN, 7)["_meta"]["progressToken"] == 7


def test_arguments_may_be_any_mapping() -> None:
    call = call_of()._replace(arguments=MappingProxyType({"a": 1}))
    assert b'"arguments":{"a":1}' in messages.write_request(7, "tools/call", messages.call_params(call, LEGACY, 7))


def test_a_caller_cannot_replace_what_the_gateway_says_of_itself() -> None:
    forged = {"io.modelcontextprotocol/clientCapabilities": {"sampling": {}}}
    assert messages.modern_params({}, forged)["_meta"]["io.modelcontextprotocol/clientCapabilities"] == {}


# Answers


def test_a_result_and_an_error_are_answers() -> None:
    assert read(id=7, result={"content": []}) == Answer(7, {"content": []})
    assert read(id=7, result={"content": []}).result() == {"content": []}
    with pytest.raises(UpstreamRefused) as caught:
        read(id=7, error={"code": -32602, "message": "secret", "data": "secret"}).result()
    assert caught.value.code == -32602
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("code", [True, 1.5, "1", None, 2**63, -(2**63) - 1])
def test_an_error_code_that_is_no_64_bit_integer_is_an_internal_error(code: Any) -> None:
    refused = read(id=7, error={"code": code}).outcome
    assert isinstance(refused, UpstreamRefused)
    assert refused.code == -32603


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        ({"result": []}, "not valid JSON-RPC"),
        ({"error": "no"}, "not valid JSON-RPC"),
        ({"result": {"resultType": "input_required"}}, "requests input, which the gateway does not carry"),
        ({"result": {"resultType": "task"}}, "a type of result that the gateway does not carry"),
    ],
)
def test_an_unusable_answer_leaves_the_outcome_unknown(outcome: dict[str, Any], reason: str) -> None:
    with pytest.raises(OutcomeUnknown, match=reason):
        read(id=7, **outcome).result()


@pytest.mark.parametrize(
    "members",
    [
        {"id": "7", "result": {}},
        {"id": 7.0, "result": {}},
        {"id": True, "result": {}},
        {"id": None, "error": {"code": 1}},
        {"result": {}},
        {"id": 7},
        {"id": 7, "result": {}, "error": {"code": 1}},
        {"id": 7, "method": "ping", "result": {}},
        {"method": 7},
        {"jsonrpc": "1.0", "id": 7, "result": {}},
        {"id": ["secret"], "method": "ping"},
        {"id": True, "method": "ping"},
        {"id": "x" * 257, "method": "ping"},
    ],
)
def test_a_message_that_is_not_json_rpc_is_refused(members: dict[str, Any]) -> None:
    assert refusal(**members) == "the upstream sent a message that is not valid JSON-RPC"


@pytest.mark.parametrize(
    "document",
    [
        b"[]",
        b'{"jsonrpc":"2.0","id":7,"result":{},"id":8}',
        b'{"jsonrpc":"2.0","id":7,"result":{"a":NaN}}',
        b'{"jsonrpc":"2.0","id":7,"result":{"a":1e999}}',
        b'{"jsonrpc":"2.0","id":7,"result":' + b"[" * 300 + b"]" * 300 + b"}",
        b'{"jsonrpc":"2.0","id":7,"result":{"a":"\xff"}}',
        b"secret",
    ],
)
def test_a_document_that_parsers_may_read_differently_is_refused(document: bytes) -> None:
    with pytest.raises(OutcomeUnknown, match=r"not valid JSON(-RPC)?$"):
        read_message(document)


# Notifications and requests


def test_progress_is_read_with_a_bounded_message() -> None:
    params = {"progressToken": 7, "progress": 1, "total": 2.5, "message": "x" * 2000}
    read_ = read(method="notifications/progress", params=params)
    assert read_ == ProgressNotification(7, 1, 2.5, "x" * 1000)
    assert read(method="notifications/progress", params={"progressToken": 7, "progress": 1}) == (7, 1, None, None)


@pytest.mark.parametrize(
    "params",
    [
        None,
        [],
        {"progress": 1},
        {"progressToken": "7", "progress": 1},
        {"progressToken": 7},
        {"progressToken": 7, "progress": True},
        {"progressToken": 7, "progress": 2**60},
        {"progressToken": 7, "progress": 1, "total": "2"},
    ],
)
def test_malformed_progress_is_ignored(params: Any) -> None:
    assert read(method="notifications/progress", params=params) is None


def test_another_notification_is_ignored() -> None:
    assert read(method="notifications/message", params={"level": "info", "data": "x"}) is None


def test_a_request_of_the_server_is_refused() -> None:
    request = read(id="s1", method="sampling/createMessage", params={})
    assert isinstance(request, ServerRequest)
    assert json.loads(request.answer)["error"]["code"] == -32601
    assert json.loads(request.answer)["id"] == "s1"


def test_a_ping_of_the_server_is_answered() -> None:
    assert json.loads(read(id=3, method="ping").answer) == {"jsonrpc": "2.0", "id": 3, "result": {}}


# The negotiation


def test_versions_are_negotiated() -> None:
    assert messages.is_modern({"supportedVersions": [MODERN, LEGACY]})
    assert not messages.is_modern({"supportedVersions": [LEGACY]})
    assert not messages.is_modern({"supportedVersions": MODERN})
    assert messages.negotiated_version({"protocolVersion": "2025-06-18"}) == "2025-06-18"
    for unknown in ("2024-11-05", MODERN, None, ["2025-06-18"]):
        with pytest.raises(UpstreamUnavailable, match="supports none of the MCP versions 2026-07-28, 2025-11-25"):
            messages.negotiated_version({"protocolVersion": unknown})


# The list of tools


async def collect(*pages: dict[str, Any]) -> list[dict[str, Any]]:
    left = list(pages)
    sent: list[dict[str, Any]] = []

    async def list_page(params: dict[str, Any]) -> dict[str, Any]:
        sent.append(params)
        return left.pop(0)

    tools = await collect_tools(list_page)
    assert not left
    assert sent == [{}, *({"cursor": page["nextCursor"]} for page in pages[:-1])]
    return tools


def tool(number: int = 0, **members: Any) -> dict[str, Any]:
    return {**TOOL, "name": f"tool_{number}", **members}


async def test_all_pages_are_read_in_order() -> None:
    tools = [tool(number, annotations={"readOnlyHint": True}) for number in range(3)]
    pages = [{"tools": [listed], "nextCursor": f"c{number}"} for number, listed in enumerate(tools[:2])]
    assert await collect(*pages, {"tools": tools[2:], "nextCursor": None}) == tools


@pytest.mark.parametrize(
    ("pages", "reason"),
    [
        ([{}], "not an array"),
        ([{"tools": {}}], "not an array"),
        ([{"tools": ["x"]}], "a tool that is not an object"),
        ([{"tools": [tool(name=7)]}], "without a name of 1 to 128 visible characters"),
        ([{"tools": [tool(name="")]}], "without a name"),
        ([{"tools": [tool(name="x" * 129)]}], "without a name"),
        ([{"tools": [tool(name="a\u200bb")]}], "without a name"),
        ([{"tools": [{"name": "x"}]}], "input schema is not an object"),
        ([{"tools": [tool(inputSchema=True)]}], "input schema is not an object"),
        ([{"tools": [tool(outputSchema=[])]}], "a member of the wrong type"),
        ([{"tools": [tool(description=7)]}], "a member of the wrong type"),
        ([{"tools": [tool(), tool()]}], "two tools with the same name"),
        ([{"tools": [tool()], "nextCursor": "a"}, {"tools": [tool()]}], "two tools with the same name"),
        ([{"tools": [], "nextCursor": "a"}, {"tools": [], "nextCursor": "a"}], "a cursor twice"),
        ([{"tools": [], "nextCursor": 7}], "a cursor twice, or one that is not a short string"),
        ([{"tools": [], "nextCursor": "x" * 5000}], "not a short string"),
        ([{"tools": [], "nextCursor": str(number)} for number in range(100)], "on more than 100 pages"),
        ([{"tools": [tool(number) for number in range(1001)]}], "more than 1000 tools"),
        ([{"tools": [tool(description="x" * 600_000)]}], "a tool of more than 512 KiB"),
        ([{"tools": [tool(number, description="x" * 500_000) for number in range(17)]}], "or 8 MiB"),
        ([{"tools": [tool(inputSchema=json.loads('{"a":' * 60 + "1" + "}" * 60))]}], "nested too deeply"),
    ],
)
async def test_a_list_beyond_its_bounds_is_refused(pages: list[dict[str, Any]], reason: str) -> None:
    with pytest.raises(OutcomeUnknown, match=reason):
        await collect(*pages)


async def test_an_error_of_a_page_ends_the_list() -> None:
    async def list_page(_: dict[str, Any]) -> dict[str, Any]:
        raise UpstreamRefused(-32603)

    with pytest.raises(UpstreamError):
        await collect_tools(list_page)
