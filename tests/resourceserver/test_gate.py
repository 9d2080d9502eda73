"""The gate: the status, the challenge and the error of each refusal."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from pydantic import BaseModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import (
    ALL_SCOPES,
    PING,
    Issuer,
    ResourceServer,
    call_of,
    error_of,
    modern_request,
    running_resource_server,
)

from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolGroup

pytestmark = pytest.mark.anyio

METADATA_URL = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"


def read_of(uri: str) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": 7, "method": "resources/read", "params": {"uri": uri}}


def challenge_of(response: httpx2.Response) -> dict[str, str]:
    """Return the parameters of the one Bearer challenge (RFC 6750 3)."""
    (challenge,) = response.headers.get_list("www-authenticate")
    assert re.fullmatch(r'Bearer (\w+="[^"\\]*"(, |$))+', challenge), challenge
    return dict(re.findall(r'(\w+)="([^"]*)"', challenge))


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
