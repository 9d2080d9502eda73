"""What a request must be before the gate decides: its headers, and the JSON-RPC message in its body."""

import json
from typing import Any

import httpx2
import pytest
from support.resourceserver import PING, ResourceServer, call_of, error_of, modern_request

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    "accept", ["text/html", "text/event-stream", "application/xml", "", "*/*, application/json;q=0"]
)
async def test_a_client_that_accepts_no_json_gets_a_406(resourceserver: ResourceServer, accept: str) -> None:
    token = resourceserver.issuer.token()
    for json_too in ("application/json", "application/*", "*/*", "text/html, Application/JSON;q=0.5"):
        assert (await resourceserver.post(PING, token, {"Accept": json_too})).status_code == 200
    response = await resourceserver.post(PING, token, {"Accept": accept})
    assert response.status_code == 406
    assert "application/json, text/event-stream" in error_of(response)["message"]


async def test_an_accept_header_of_thousands_of_ranges_is_not_read(resourceserver: ResourceServer) -> None:
    """CWE-400: a megabyte of them would hold up all other calls for seconds."""
    line = ("Accept", "application/json," + "a/b," * 500)
    assert (await send(resourceserver, PING, AS_JSON, line)).status_code == 200
    assert (await send(resourceserver, PING, AS_JSON, line, line, line)).status_code == 406


async def send(server: ResourceServer, message: Any, *headers: tuple[str, str], token: bool = True) -> httpx2.Response:
    """POST a message with exactly these headers, and a token."""
    authorization = [("Authorization", f"Bearer {server.issuer.token()}")] if token else []
    request = httpx2.Request(
        "POST", server.settings.resource, content=json.dumps(message), headers=[*authorization, *headers]
    )
    return await server.http.send(request)


MODERN, MODERN_HEADERS = modern_request("tools/call", name="whoami", arguments={})

AS_JSON = ("Content-Type", "application/json")


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param([AS_JSON], id="no Accept"),
        pytest.param([AS_JSON, ("Accept", "text/html"), ("Accept", "APPLICATION/JSON")], id="two lines of Accept"),
        pytest.param([AS_JSON, ("Accept", "text/*, */*;q=0.1")], id="any type"),
        pytest.param([("Content-Type", "Application/JSON; Charset=UTF-8")], id="upper case"),
        pytest.param([("Content-Type", 'application/json;charset="utf8";')], id="quoted"),
        pytest.param([("Content-Type", "application/json; profile=x")], id="another parameter"),
    ],
)
async def test_the_sdk_reads_accepted_headers_as_the_gate_does(
    resourceserver: ResourceServer, headers: list[tuple[str, str]]
) -> None:
    """RFC 9110 8.3.1 and 12.5.1. The SDK reads one line of Accept, and media types in lower case only."""
    for message, more in ((call_of("whoami"), {}), (MODERN, MODERN_HEADERS)):
        response = await send(resourceserver, message, *headers, *more.items())
        assert response.status_code == 200, response.text
        assert response.json()["result"]["structuredContent"]["client_id"] == "agent_1"


@pytest.mark.parametrize(
    "content_types",
    [
        *([], ["application/json", "application/json"], ["application/json, application/json"], ["application/json;x"]),
        *(["application/json; charset=iso-8859-1"], ["application/json; a=utf-8; charset=utf-16"]),
        *(['application/json; charset="utf-8'], ["application/json; charset=utf-8; charset=utf-8"]),
    ],
    ids=str,
)
async def test_anything_but_one_content_type_of_json_is_a_415(
    resourceserver: ResourceServer, content_types: list[str]
) -> None:
    assert (await send(resourceserver, PING, AS_JSON)).status_code == 200
    response = await send(resourceserver, PING, *(("Content-Type", value) for value in content_types))
    assert response.status_code == 415
    assert error_of(response)["code"] == -32600


@pytest.mark.parametrize("header", [*MODERN_HEADERS, "Mcp-Param-Region", "Mcp-Session-Id"])
async def test_a_header_of_mcp_on_two_lines_is_refused(resourceserver: ResourceServer, header: str) -> None:
    """Two readers of the request could read different lines."""
    line = (header, MODERN_HEADERS.get(header, "eu"))
    for message, more in ((PING, [("MCP-Protocol-Version", "2025-11-25")]), (MODERN, [*MODERN_HEADERS.items()])):
        others = [(name, value) for name, value in more if name != header]
        if header != "MCP-Protocol-Version" or message is MODERN:
            assert (await send(resourceserver, message, AS_JSON, *others, line)).status_code == 200
        response = await send(resourceserver, message, AS_JSON, *others, line, line)
        assert response.status_code == 400
        assert error_of(response, message["id"])["code"] == -32020


@pytest.mark.divergence("D-64")
@pytest.mark.parametrize(
    "message",
    [
        pytest.param({**PING, "params": None}, id="params"),
        pytest.param({**PING, "method": "tools/list", "params": None}, id="params of a list"),
        pytest.param({**PING, "params": {"_meta": None}}, id="_meta"),
        pytest.param({**PING, "method": "tools/list", "params": {"cursor": None, "_meta": None}}, id="cursor"),
        pytest.param({**PING, "method": "resources/list", "params": {"cursor": None}}, id="cursor of resources"),
        pytest.param({**PING, "method": "tools/call", "params": {"name": "whoami", "arguments": None}}, id="arguments"),
        pytest.param({**call_of("whoami"), "params": {"name": "whoami", "_meta": None}}, id="_meta of a call"),
    ],
)
async def test_null_for_an_optional_member_counts_as_absent(resourceserver: ResourceServer, message: Any) -> None:
    for version in ("2025-03-26", "2025-11-25"):
        headers = {"MCP-Protocol-Version": version}
        response = await resourceserver.post(message, resourceserver.issuer.token(), headers)
        assert response.status_code == 200, response.text
        assert "result" in response.json()


async def test_a_notification_may_have_null_for_params(resourceserver: ResourceServer) -> None:
    message = {"jsonrpc": "2.0", "method": "notifications/initialized", "params": None}
    assert (await resourceserver.post(message, resourceserver.issuer.token())).status_code == 202


@pytest.mark.parametrize(
    ("message", "code"),
    [
        pytest.param({**PING, "id": None}, -32600, id="id"),
        pytest.param({**PING, "method": None}, -32600, id="method"),
        pytest.param({**call_of("whoami"), "params": None}, -32602, id="params of a call"),
        pytest.param({**call_of("whoami"), "params": {"name": None}}, -32602, id="name"),
        pytest.param({**PING, "params": {"_meta": {"progressToken": None}}}, -32602, id="progressToken"),
        pytest.param({**PING, "params": {"_meta": False}}, -32602, id="_meta false"),
        pytest.param({**PING, "params": False}, -32602, id="params false"),
        pytest.param({**PING, "params": ""}, -32602, id="params empty"),
        pytest.param({**PING, "params": []}, -32602, id="params a list"),
    ],
)
async def test_null_for_a_required_member_is_refused(resourceserver: ResourceServer, message: Any, code: int) -> None:
    assert (await resourceserver.post(PING, resourceserver.issuer.token())).status_code == 200
    response = await resourceserver.post(message, resourceserver.issuer.token())
    assert response.status_code == 400
    assert error_of(response, message["id"])["code"] == code


@pytest.mark.divergence("D-12", "D-60")
@pytest.mark.parametrize("name", ["no_such_tool", "Whoami", "tools/call", "__init__"])
async def test_an_unknown_tool_is_invalid_params(resourceserver: ResourceServer, name: str) -> None:
    token = resourceserver.issuer.token()
    assert (await resourceserver.call("whoami", token)).status_code == 200
    response = await resourceserver.call(name, token)
    assert response.status_code == 400
    assert error_of(response)["code"] == -32602


@pytest.mark.divergence("D-17")
@pytest.mark.threat("T-022")
@pytest.mark.parametrize(
    "method",
    [
        *("prompts/list", "prompts/get", "resources/subscribe", "resources/unsubscribe", "RESOURCES/READ"),
        *("completion/complete", "subscriptions/listen", "logging/setLevel"),
        *("tasks/get", "tasks/list", "tasks/result", "tasks/cancel", "sampling/createMessage", "roots/list"),
        *("TOOLS/CALL", "tools/call ", "tools/", "", "notifications/initialized", "rpc.discover"),
    ],
)
async def test_the_table_of_methods_is_closed(resourceserver: ResourceServer, method: str) -> None:
    """A client of 2025-11-25 or earlier reports a 404 as the end of its session."""
    token, message = resourceserver.issuer.token(), {**PING, "method": method, "params": {"name": "whoami"}}
    for version, status in ((None, 200), ("2025-03-26", 200), ("2025-11-25", 200), ("2026-07-28", 404)):
        headers = {"MCP-Protocol-Version": version} if version else {}
        assert (await resourceserver.post(PING, token)).json()["result"] == {}
        response = await resourceserver.post(message, token, headers)
        assert response.status_code == status
        assert error_of(response)["code"] == -32601
        (event,) = resourceserver.audit(request_id=response.headers["x-request-id"])
        assert (event["outcome"], event["detail"]["status"]) == ("refused", status)


async def test_a_notification_is_acknowledged_and_an_unknown_one_refused(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token()
    for version, status in (("2025-06-18", 400), ("2026-07-28", 404)):
        headers = {"MCP-Protocol-Version": version}
        known = await resourceserver.post({"jsonrpc": "2.0", "method": "notifications/initialized"}, token, headers)
        assert (known.status_code, known.content) == (202, b"")
        unknown = await resourceserver.post({"jsonrpc": "2.0", "method": "notifications/tasks/status"}, token, headers)
        assert unknown.status_code == status
        assert error_of(unknown, None)["code"] == -32601


@pytest.mark.threat("T-022")
@pytest.mark.parametrize(
    ("message", "rpc_id"),
    [
        pytest.param([PING], None, id="batch"),
        pytest.param([], None, id="empty batch"),
        pytest.param("ping", None, id="string"),
        pytest.param(None, None, id="null"),
        pytest.param({"jsonrpc": "2.0", "id": 7, "result": {}}, 7, id="response"),
        pytest.param({"jsonrpc": "2.0", "id": 7, "error": {"code": 1, "message": ""}}, 7, id="error response"),
        pytest.param({**PING, "result": {}}, 7, id="request and response in one"),
        pytest.param({**PING, "id": None}, None, id="id null"),
        pytest.param({**PING, "id": 1.5}, None, id="id fraction"),
        pytest.param({**PING, "id": 1.0}, None, id="id float"),
        pytest.param({**PING, "id": True}, None, id="id bool"),
        pytest.param({**PING, "id": [7]}, None, id="id list"),
        pytest.param({**PING, "method": 5}, 7, id="method number"),
        pytest.param({"jsonrpc": "2.0", "id": 7}, 7, id="no method"),
        pytest.param({"id": 7, "method": "ping"}, 7, id="no version"),
        pytest.param({**PING, "jsonrpc": "1.0"}, 7, id="other version"),
    ],
)
async def test_anything_but_a_single_request_is_an_invalid_request(
    resourceserver: ResourceServer, message: Any, rpc_id: int | None
) -> None:
    """JSON-RPC 2.0, 4; MCP 2025-11-25 and later have no batches."""
    token = resourceserver.issuer.token()
    assert (await resourceserver.post(PING, token)).status_code == 200
    response = await resourceserver.post(message, token)
    assert response.status_code == 400
    assert error_of(response, rpc_id)["code"] == -32600


@pytest.mark.parametrize(
    "params",
    [
        pytest.param(["whoami"], id="params a list"),
        pytest.param("whoami", id="params a string"),
        pytest.param({}, id="no name"),
        pytest.param({"name": 5}, id="name a number"),
        pytest.param({"name": ["whoami"]}, id="name a list"),
        pytest.param({"name": "whoami", "arguments": ["zzyzx"]}, id="arguments a list"),
        pytest.param({"name": "whoami", "arguments": "zzyzx"}, id="arguments a string"),
    ],
)
async def test_a_malformed_call_is_invalid_params(resourceserver: ResourceServer, params: Any) -> None:
    token = resourceserver.issuer.token()
    response = await resourceserver.post({**call_of("whoami"), "params": params}, token)
    assert response.status_code == 400
    assert error_of(response)["code"] == -32602
    assert "zzyzx" not in response.text
