"""The request id of every refusal leads an operator to the private reason and the remediation."""

import json
from typing import Any

import httpx2
import pytest
from support.logs import logging_put_back
from support.resourceserver import ResourceServer, modern_request

from gatehouse.resourceserver.asgi import Application
from gatehouse.resourceserver.catalogue import CATALOGUE_URI
from gatehouse.shared.service.audit.events import RESOURCE_SERVER_ACTIONS, AuditAction, AuditEvent
from gatehouse.shared.service.logs import configure_logs

pytestmark = pytest.mark.anyio

METADATA = "/.well-known/oauth-protected-resource"
ORIGIN = "https://mcp.example.com"


def only_event(server: ResourceServer, response: httpx2.Response) -> dict[str, Any]:
    [event] = server.audit(request_id=response.headers["x-request-id"])
    return event


@pytest.mark.threat("T-115")
@pytest.mark.parametrize(
    ("method", "path", "headers", "status", "reason", "remediation"),
    [
        ("GET", METADATA, {"Host": "evil.example"}, 421, "Host: evil.example", "mcp.example.com"),
        ("GET", METADATA, {"Origin": "https://evil.example"}, 403, "Origin: https://evil.example", "ALLOWED_ORIGINS"),
        ("GET", "/none", {}, 404, "No such endpoint", f"POST to {ORIGIN}/mcp"),
        ("POST", METADATA, {}, 405, "No such endpoint or method", f"POST to {ORIGIN}/mcp"),
    ],
    ids=["Host", "Origin", "404", "405"],
)
async def test_a_refusal_before_the_gate_is_found_by_its_request_id(
    resourceserver: ResourceServer,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    reason: str,
    remediation: str,
) -> None:
    assert (await resourceserver.http.get(ORIGIN + METADATA)).status_code == 200
    response = await resourceserver.http.request(method, ORIGIN + path, headers=headers)
    assert response.status_code == status
    assert response.json()["request_id"] == response.headers["x-request-id"]
    event = only_event(resourceserver, response)
    assert (event["action"], event["outcome"], event["detail"]["status"]) == ("http.request", "refused", status)
    assert reason in event["reason"]
    assert remediation in event["detail"]["remediation"]


async def test_the_application_records_what_the_worker_refuses(resourceserver: ResourceServer) -> None:
    """The hook of shared/service/transport_refusals.py."""
    app = resourceserver.app
    assert isinstance(app, Application)
    app.record(AuditEvent(AuditAction.HTTP_REQUEST, "refused", request_id="req_queued"))
    await resourceserver.services.audit.commit_async(AuditEvent(AuditAction.HTTP_REQUEST, "refused"))
    assert len(resourceserver.audit(request_id="req_queued")) == 1


async def test_an_unknown_path_is_not_recorded(resourceserver: ResourceServer) -> None:
    """A path may contain a credential that was pasted into it."""
    response = await resourceserver.http.get(f"{ORIGIN}/gths_pasted-by-mistake")
    assert response.status_code == 404
    assert "pasted" not in json.dumps(only_event(resourceserver, response), default=str)


async def test_an_unexpected_failure_is_found_by_its_request_id(resourceserver: ResourceServer) -> None:
    answers: list[Any] = []

    async def receive() -> Any:
        raise OSError("the transport broke at /srv/secret/path")

    async def send(message: Any) -> None:
        answers.append(message)

    scope = {"type": "http", "method": "POST", "path": "/mcp", "raw_path": b"/mcp", "query_string": b""}
    await resourceserver.app({**scope, "root_path": "", "headers": [(b"host", b"mcp.example.com")]}, receive, send)
    request_id = dict(answers[0]["headers"])[b"x-request-id"].decode()
    [event] = resourceserver.audit(request_id=request_id)
    assert (answers[0]["status"], event["outcome"], event["detail"]["status"]) == (500, "failed", 500)
    assert "secret" not in json.dumps(event, default=str)


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {}], ids=["Host", "404"])
async def test_no_refusal_before_the_gate_is_sent_unrecorded(
    resourceserver: ResourceServer, headers: dict[str, str]
) -> None:
    assert (await resourceserver.http.get(f"{ORIGIN}/none", headers=headers)).status_code in {404, 421}
    with resourceserver.admin_database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit_event")
    response = await resourceserver.http.get(f"{ORIGIN}/none", headers=headers)
    assert (response.status_code, response.json()["error"]) == (503, "temporarily_unavailable")
    assert int(response.headers["retry-after"]) > 0


async def test_a_refusal_of_the_gate_names_the_remediation(resourceserver: ResourceServer) -> None:
    body, headers = modern_request("tools/call", name="create_environment", arguments={"name": "x"})
    good = resourceserver.issuer.token()
    assert (await resourceserver.post(body, good, headers)).status_code == 200
    reader, foreign = resourceserver.issuer.token("env:read"), resourceserver.issuer.token(aud="https://other.example")
    unknown, unknown_headers = modern_request("tools/call", name="no_such_tool", arguments={})
    for response, status, remediation in (
        (await resourceserver.post(body, None, headers), 401, "resource=https://mcp.example.com/mcp"),
        (await resourceserver.post(body, foreign, headers), 401, "authserver token inspect"),
        (await resourceserver.post(body, reader, headers), 403, "authserver client grant add agent_1"),
        (await resourceserver.post(unknown, good, unknown_headers), 400, "resourceserver tools"),
    ):
        assert response.status_code == status
        assert remediation in only_event(resourceserver, response)["detail"]["remediation"]
        assert remediation not in response.text


async def test_every_recorded_action_can_be_filtered(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token()
    await resourceserver.http.get(f"{ORIGIN}/none")
    await resourceserver.call("whoami", token)
    for method, params in (("resources/read", {"uri": CATALOGUE_URI}), ("no/such", {})):
        await resourceserver.post({"jsonrpc": "2.0", "id": 7, "method": method, "params": params}, token)
    by_commands = {"audit.prune", "audit_key.rotate", "workspace.create"}
    assert {event["action"] for event in resourceserver.audit()} == set(RESOURCE_SERVER_ACTIONS) - by_commands


async def test_each_request_is_logged_with_id_client_outcome_and_duration(
    resourceserver: ResourceServer, capfd: pytest.CaptureFixture[str]
) -> None:
    ping, headers = {"jsonrpc": "2.0", "id": 7, "method": "ping"}, {"Accept": "application/json"}
    with logging_put_back():
        configure_logs("json")
        capfd.readouterr()
        responses = [
            await resourceserver.post(ping, resourceserver.issuer.token(), headers),
            await resourceserver.post(ping, None, headers),
            await resourceserver.http.get(f"{ORIGIN}/none", headers={"Host": "evil.example"}),
        ]
        lines = [json.loads(line) for line in capfd.readouterr().err.splitlines()]
    lines = [line for line in lines if line["event"] == "request"]
    assert [line["request_id"] for line in lines] == [response.headers["x-request-id"] for response in responses]
    assert [line["outcome"] for line in lines] == ["allowed", "refused", "refused"]
    assert [line["status"] for line in lines] == [200, 401, 421]
    assert lines[0]["client_id"] == "agent_1"
    assert all(line["ms"] >= 0 for line in lines)
