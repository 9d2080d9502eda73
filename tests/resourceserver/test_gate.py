"""The gate: the status, the challenge and the error of each refusal."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ALL_SCOPES, Issuer, ResourceServer, modern_request, running_resource_server

from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolGroup

pytestmark = pytest.mark.anyio

METADATA_URL = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


def call_of(tool: str, **arguments: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {"name": tool, "arguments": arguments}}


def read_of(uri: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": uri}}


def challenge_of(response: httpx2.Response) -> dict[str, str]:
    """Return the parameters of the one Bearer challenge (RFC 6750 3)."""
    (challenge,) = response.headers.get_list("www-authenticate")
    assert re.fullmatch(r'Bearer (\w+="[^"\\]*"(, |$))+', challenge), challenge
    return dict(re.findall(r'(\w+)="([^"]*)"', challenge))


def error_of(response: httpx2.Response, rpc_id: int | str | None = 7) -> dict[str, Any]:
    """Return the error of a refusal, which is a JSON-RPC response with a request id."""
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"
    body = response.json()
    assert body.keys() == {"jsonrpc", "id", "error"}
    assert (body["jsonrpc"], body["id"]) == ("2.0", rpc_id)
    assert body["error"]["data"]["request_id"] == response.headers["x-request-id"]
    return body["error"]


async def test_a_call_with_a_sufficient_token_runs(resourceserver: ResourceServer) -> None:
    result = await resourceserver.result("whoami", resourceserver.issuer.token("env:read"))
    assert result["client_id"] == "agent_1"
    assert result["scopes"] == ["env:read"]


# 401


@pytest.mark.divergence("D-58")
async def test_a_request_without_a_token_is_challenged_without_an_error_code(resourceserver: ResourceServer) -> None:
    """RFC 6750 3.1: no error code when no authentication information was sent."""
    assert (await resourceserver.post(PING, resourceserver.issuer.token())).status_code == 200
    response = await resourceserver.post(PING)
    assert response.status_code == 401
    assert challenge_of(response) == {"scope": ALL_SCOPES, "resource_metadata": METADATA_URL}
    assert "error" not in error_of(response)["data"]


@pytest.mark.parametrize(
    "authorization",
    [
        pytest.param(lambda token: "Bearer not-a-token", id="garbage"),
        pytest.param(lambda token: f"Basic {token}", id="other scheme"),
        pytest.param(lambda token: "Bearer", id="no credentials"),
        pytest.param(lambda token: token, id="no scheme"),
        pytest.param(lambda token: f"Bearer {token} {token}", id="two tokens"),
        pytest.param(lambda token: f"Bearer {token}, Bearer {token}", id="list"),
        pytest.param(lambda token: f"Bearer\t{token}", id="tab"),
    ],
)
async def test_a_bad_authorization_header_is_an_invalid_token(
    resourceserver: ResourceServer, authorization: Callable[[str], str]
) -> None:
    token = resourceserver.issuer.token()
    assert (await resourceserver.post(PING, token)).status_code == 200
    response = await resourceserver.post(PING, headers={"Authorization": authorization(token)})
    assert response.status_code == 401
    challenge = challenge_of(response)
    assert challenge.pop("error_description")
    assert challenge == {"error": "invalid_token", "scope": ALL_SCOPES, "resource_metadata": METADATA_URL}
    assert error_of(response)["data"]["error"] == "invalid_token"


async def test_the_authorization_scheme_is_case_insensitive(resourceserver: ResourceServer) -> None:
    """RFC 9110 11.1."""
    token = resourceserver.issuer.token()
    for scheme in ("bearer", "BEARER"):
        response = await resourceserver.post(PING, headers={"Authorization": f"{scheme} {token}"})
        assert response.status_code == 200


async def test_two_authorization_headers_are_refused_even_if_both_are_valid(resourceserver: ResourceServer) -> None:
    """RFC 9110 5.3: Authorization is not a list. Two readers could choose two callers."""
    header = ("Authorization", f"Bearer {resourceserver.issuer.token()}")
    for headers, status in (([header], 200), ([header, header], 401)):
        response = await resourceserver.http.post(
            resourceserver.settings.resource,
            json=PING,
            headers=[("Accept", "application/json, text/event-stream"), *headers],
        )
        assert response.status_code == status


@pytest.mark.divergence("D-03")
@pytest.mark.parametrize(
    ("baseline", "tool", "named"),
    [
        pytest.param(None, "whoami", ALL_SCOPES, id="default, a tool without scopes"),
        pytest.param(None, "create_environment", ALL_SCOPES, id="default, a tool with scopes"),
        pytest.param("env:read", "whoami", "env:read", id="set, a tool without scopes"),
        pytest.param("env:read", "create_organization", "env:read org:write", id="set, a tool with scopes"),
        pytest.param("env:read", "no_such_tool", "env:read", id="set, an unknown tool"),
    ],
)
async def test_a_401_names_the_baseline_and_the_scopes_of_the_operation(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, baseline: str | None, tool: str, named: str
) -> None:
    async with running_resource_server(
        tmp_path / "rs", resourceserver_template, clock, baseline_scopes=baseline
    ) as server:
        without = await server.call(tool)
        expired = await server.call(tool, server.issuer.token(exp=int(clock()) - 100, iat=int(clock()) - 400))
    assert (without.status_code, expired.status_code) == (401, 401)
    assert challenge_of(without)["scope"] == challenge_of(expired)["scope"] == named


@pytest.mark.divergence("D-63")
@pytest.mark.parametrize("method", ["GET", "DELETE", "PUT", "HEAD", "OPTIONS"])
async def test_another_http_method_is_401_without_and_405_with_a_token(
    resourceserver: ResourceServer, method: str
) -> None:
    url, token = resourceserver.settings.resource, resourceserver.issuer.token()
    assert (await resourceserver.post(PING, token)).status_code == 200
    before = await resourceserver.http.request(method, url)
    assert before.status_code == 401
    assert challenge_of(before)["scope"] == ALL_SCOPES
    after = await resourceserver.http.request(method, url, headers={"Authorization": f"Bearer {token}"})
    assert (after.status_code, after.headers["allow"]) == (405, "POST")


# 403


@pytest.mark.divergence("D-58")
async def test_a_403_names_all_scopes_of_the_operation_in_one_challenge(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """All scopes, not only the missing ones, but none that another of them implies."""
    group, runs = ToolGroup(), []

    class Nothing(BaseModel):
        """Nothing."""

    @group.tool(scopes=["env:read", "env:write", "org:read"], read_only=False)
    async def migrate() -> Nothing:
        """Need three scopes, one of which implies another."""
        runs.append("migrate")
        return Nothing()

    scopes = [Scope("env:read", ""), Scope("env:write", "", ("env:read",)), Scope("org:read", "")]
    catalogue = Catalogue("test", scopes, [group])
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, catalogue) as server:
        await server.result("migrate", server.issuer.token("org:read env:write"))
        refused = await server.call("migrate", server.issuer.token("org:read env:read"))
        assert (refused.status_code, runs) == (403, ["migrate"])
    challenge = challenge_of(refused)
    assert challenge.pop("error_description")
    assert challenge == {
        "error": "insufficient_scope",
        "scope": "env:write org:read",
        "resource_metadata": METADATA_URL,
    }
    error = error_of(refused)
    assert error["data"]["scope"] == "env:write org:read"
    assert "env:write org:read" in error["message"]


async def test_a_write_scope_implies_the_read_scope(resourceserver: ResourceServer) -> None:
    """MCP 2026-07-28, "Step-Up Authorization Flow": servers account for hierarchies."""
    token = resourceserver.issuer.token("env:write", workspace_id=resourceserver.create_workspace())
    assert await resourceserver.result("list_environments", token)


@pytest.mark.threat("T-020")
async def test_a_read_scope_does_not_imply_the_write_scope(resourceserver: ResourceServer) -> None:
    workspace = resourceserver.create_workspace()
    refused = await resourceserver.call(
        "create_environment", resourceserver.issuer.token("env:read", workspace_id=workspace), name="staging"
    )
    assert refused.status_code == 403
    assert challenge_of(refused)["scope"] == "env:write"
    writer = resourceserver.issuer.token("env:write", workspace_id=workspace)
    assert (await resourceserver.result("list_environments", writer))["environments"] == []


# 503


@pytest.mark.divergence("D-60")
async def test_a_token_that_cannot_be_verified_now_is_503_and_not_401(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """In an outage, a 401 would make every agent discard a valid token."""
    issuer = Issuer(clock)
    async with running_resource_server(tmp_path / "before", resourceserver_template, clock, keys_of=issuer) as server:
        assert (await server.post(PING, issuer.token())).status_code == 200
    issuer.away = True
    async with running_resource_server(tmp_path / "rs", resourceserver_template, clock, keys_of=issuer) as server:
        response = await server.post(PING, issuer.token())
        without = await server.post(PING)
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0
    assert "www-authenticate" not in response.headers
    assert error_of(response)["code"] == -31053
    assert without.status_code == 401


async def test_a_refusal_that_cannot_be_recorded_is_503(resourceserver: ResourceServer) -> None:
    """A refusal is recorded before it is sent, so one that cannot be recorded is a 503."""
    assert (await resourceserver.post(PING)).status_code == 401
    with resourceserver.admin_database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit_event")
    response = await resourceserver.post(PING)
    assert response.status_code == 503
    assert "www-authenticate" not in response.headers
    error_of(response)


async def test_a_refusal_of_the_protocol_layer_that_cannot_be_recorded_is_503(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token()
    body, headers = modern_request("tools/call", name="whoami", arguments={})
    assert (await resourceserver.post(body, token, headers)).status_code == 200
    contradicting = {**headers, "Mcp-Name": "list_environments"}
    refused = await resourceserver.post(body, token, contradicting)
    assert refused.status_code == 400
    (event,) = resourceserver.audit(request_id=refused.headers["x-request-id"])
    assert (event["outcome"], event["object"]) == ("refused", "whoami")
    with resourceserver.admin_database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit_event")
    response = await resourceserver.post(body, token, contradicting)
    assert response.status_code == 503
    assert error_of(response)["code"] == -31053


# 400, 406 and 415


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


# Null


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


# Valid messages


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


# The audit log


@pytest.mark.parametrize(
    ("message", "scope", "expected"),
    [
        pytest.param(call_of("whoami"), None, ("tool.call", "whoami", 401), id="no token"),
        pytest.param(PING, None, ("mcp.request", "ping", 401), id="no token, no tool"),
        pytest.param(call_of("create_environment"), "org:read", ("tool.call", "create_environment", 403), id="scope"),
        pytest.param(call_of("no_such_tool"), "org:read", ("tool.call", "no_such_tool", 400), id="unknown tool"),
        pytest.param(read_of("gatehouse://x"), None, ("resource.read", "gatehouse://x", 401), id="no token, resource"),
        pytest.param(read_of("gatehouse://x"), "org:read", ("resource.read", "gatehouse://x", 400), id="no resource"),
        pytest.param({**PING, "method": "tasks/get"}, "org:read", ("mcp.request", "tasks/get", 200), id="method"),
        pytest.param([PING], "org:read", ("mcp.request", None, 400), id="batch"),
    ],
)
async def test_a_refusal_is_recorded_before_it_is_answered(
    resourceserver: ResourceServer, message: Any, scope: str | None, expected: tuple[str, str | None, int]
) -> None:
    token = resourceserver.issuer.token(scope, jti="jti-of-this-call") if scope else None
    response = await resourceserver.post(message, token)
    (event,) = resourceserver.audit(request_id=response.headers["x-request-id"])
    assert (event["action"], event["object"], event["detail"]["status"]) == expected
    assert (response.status_code, event["outcome"]) == (expected[2], "refused")
    assert (event["actor"], event["jti"]) == (("agent_1", "jti-of-this-call") if scope else (None, None))
    assert event["reason"]


async def test_only_the_audit_log_says_why_a_token_was_refused(resourceserver: ResourceServer) -> None:
    expired = await resourceserver.post(PING, resourceserver.issuer.token(iat=1, exp=2))
    foreign = await resourceserver.post(PING, resourceserver.issuer.token(aud="https://other.example.com/mcp"))
    reasons = [resourceserver.audit(request_id=r.headers["x-request-id"])[0]["reason"] for r in (expired, foreign)]
    assert re.fullmatch("expired [0-9]+ s ago", reasons[0])
    assert reasons[1] == "aud is https://other.example.com/mcp, not this resource"
    messages = {error_of(response)["message"] for response in (expired, foreign)}
    assert len(messages) == 1
    assert expired.headers["www-authenticate"] == foreign.headers["www-authenticate"]


async def test_the_audit_log_names_the_command_that_allows_a_refused_call(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token("env:read")
    refused = await resourceserver.call("create_environment", token, name="a")
    (event,) = resourceserver.audit(request_id=error_of(refused)["data"]["request_id"])
    expected = "authserver client grant add agent_1 --resource https://mcp.example.com/mcp --scope env:write"
    assert event["detail"]["remediation"] == expected
    assert "grant add" not in refused.text


@pytest.mark.threat("T-014")
async def test_a_revoked_token_is_challenged_as_an_invalid_one(resourceserver: ResourceServer) -> None:
    issuer = resourceserver.issuer
    claims = issuer.claims()
    token = issuer.key.sign("at+jwt", claims)
    assert (await resourceserver.call("whoami", token)).status_code == 200
    issuer.revoke(claims["status"]["status_list"]["idx"])
    await resourceserver.services.statuses.refresh()
    response = await resourceserver.call("whoami", token)
    assert response.status_code == 401
    assert 'error="invalid_token"' in response.headers["www-authenticate"]
    [event] = resourceserver.audit(jti=claims["jti"])[-1:]
    assert (event["reason"], event["actor"]) == ("revoked", "agent_1")


@pytest.mark.threat("T-126")
async def test_a_token_of_unknown_status_is_503_and_never_401(resourceserver: ResourceServer, clock: FakeClock) -> None:
    """A 401 would send every agent to the token endpoint, which is unavailable."""
    assert (await resourceserver.call("whoami", resourceserver.issuer.token())).status_code == 200
    resourceserver.issuer.away = True
    clock.advance(901)
    response = await resourceserver.call("whoami", resourceserver.issuer.token())
    assert response.status_code == 503
    assert response.headers["retry-after"] == "2"
    assert "www-authenticate" not in response.headers
    ready = await resourceserver.http.get("https://mcp.example.com/readyz")
    assert (ready.status_code, ready.json()["status_lists"]) == (503, "1 of 1 are stale")
