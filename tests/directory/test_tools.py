"""What all tools have in common: the listing, argument errors, workspaces, and audit events."""

from typing import Any

import pytest
from support.clock import FakeClock
from support.directory import Caller, count_rows
from support.resourceserver import ALL_SCOPES, ResourceServer, modern_request

from gatehouse.directory.catalogue import CATALOGUE

pytestmark = pytest.mark.anyio


async def test_whoami_returns_the_claims_of_the_token(caller: Caller, clock: FakeClock) -> None:
    assert await caller("whoami") == {
        "client_id": "agent_1",
        "scopes": sorted(ALL_SCOPES.split()),
        "workspace_id": caller.workspace_id,
        "expires_at": int(clock()) + 300,
    }


@pytest.mark.parametrize(
    ("scope", "effective"),
    [
        pytest.param(ALL_SCOPES, set(ALL_SCOPES.split()), id="all"),
        pytest.param("env:write org:write wks:write", set(ALL_SCOPES.split()), id="writers read"),
        pytest.param("org:write", {"org:read", "org:write"}, id="org"),
        pytest.param("env:read", {"env:read"}, id="reader"),
        pytest.param("unknown:scope", set(), id="unknown scope"),
    ],
)
async def test_tools_list_contains_the_allowed_tools_in_order(
    resourceserver: ResourceServer, scope: str, effective: set[str]
) -> None:
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(scope), headers)).json()["result"]
    expected = [name for name, tool in sorted(CATALOGUE.tools.items()) if tool.scopes <= effective]
    assert {"search_docs", "whoami"} <= set(expected)
    assert [tool["name"] for tool in result["tools"]] == expected


@pytest.mark.divergence("D-11")
async def test_tools_list_is_private_and_not_cacheable(resourceserver: ResourceServer) -> None:
    """MCP 2026-07-28, "Caching": the list is filtered for one principal, and would be wrong for another."""
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(), headers)).json()["result"]
    assert (result["cacheScope"], result["ttlMs"]) == ("private", 0)
    assert "nextCursor" not in result


async def test_tools_list_states_scopes_and_annotations(resourceserver: ResourceServer) -> None:
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(), headers)).json()["result"]
    tools = {tool["name"]: tool for tool in result["tools"]}
    assert tools["create_organization"]["_meta"] == {"io.gatehouse/scopes": ["org:write"]}
    assert not tools["create_organization"]["annotations"]["readOnlyHint"]
    assert tools["list_organizations"]["annotations"]["readOnlyHint"]
    assert tools["whoami"]["_meta"] == {"io.gatehouse/scopes": []}


@pytest.mark.threat("T-049")
@pytest.mark.parametrize(
    ("tool", "arguments", "named"),
    [
        pytest.param("create_environment", {}, "name", id="missing"),
        pytest.param("create_environment", {"name": 5}, "name", id="number for text"),
        pytest.param("create_environment", {"name": None}, "name", id="null for text"),
        pytest.param("create_environment", {"name": ["zzyzx"]}, "name", id="list for text"),
        pytest.param("create_environment", {"name": {"zzyzx": 1}}, "name", id="object for text"),
        pytest.param("create_environment", {"name": "Zzyzx"}, "name", id="pattern"),
        pytest.param("create_environment", {"name": "zzyzx\n"}, "name", id="newline after"),
        pytest.param("create_environment", {"name": "zzyzx-"}, "name", id="hyphen at the end"),
        pytest.param("create_environment", {"name": "z" * 64}, "name", id="too long"),
        pytest.param("create_environment", {"name": "a", "kind": "zzyzx"}, "kind", id="not of the values"),
        pytest.param(
            "create_environment",
            {"name": "a", "zzyzx": 1},
            "the arguments are: name, kind, idempotency_key",
            id="unknown argument",
        ),
        pytest.param("list_environments", {"page_size": "5"}, "page_size", id="text for number"),
        pytest.param("list_environments", {"page_size": True}, "page_size", id="bool for number"),
        pytest.param("list_environments", {"page_size": 5.5}, "page_size", id="fraction"),
        pytest.param("list_environments", {"page_size": 0}, "page_size", id="zero"),
        pytest.param("list_environments", {"page_size": 101}, "page_size", id="too many"),
        pytest.param("list_environments", {"page_token": ""}, "page_token", id="empty token"),
        pytest.param("list_environments", {"page_token": "z" * 65}, "page_token", id="long token"),
        pytest.param(
            "list_environments",
            {"directory": "zzyzx"},
            "unknown argument; ",
            id="injected parameter",
        ),
        pytest.param(
            "whoami",
            {"claims": {"client_id": "zzyzx"}},
            "unknown argument; ",
            id="injected claims",
        ),
        pytest.param("get_environment_details", {"environment_id": "../zzyzx"}, "environment_id", id="path"),
        pytest.param("get_environment_details", {"environment_id": "env_' OR '1'='1"}, "environment_id", id="SQL"),
        pytest.param("create_organization", {"environment_id": "zzyzx", "name": "a"}, "environment_id", id="id"),
    ],
)
async def test_invalid_arguments_are_explained_and_not_echoed(
    caller: Caller, tool: str, arguments: dict[str, Any], named: str
) -> None:
    answer = await caller.failure(tool, **arguments)
    assert named in answer
    assert "zz" not in answer.lower()
    assert "pydantic" not in answer
    assert count_rows(caller.server, "environment") == 0
    event = caller.server.audit()[-1]
    assert (event["action"], event["object"], event["outcome"]) == ("tool.call", tool, "failed")
    assert "zz" not in str(event)


@pytest.mark.threat("T-026")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        pytest.param("get_environment_details", {}, id="read"),
        pytest.param("list_organizations", {}, id="list"),
        pytest.param("create_organization", {"name": "A"}, id="write"),
    ],
)
async def test_objects_of_other_workspaces_look_nonexistent(
    caller: Caller, other: Caller, tool: str, arguments: dict[str, Any]
) -> None:
    theirs = (await other("create_environment", name="secret"))["environment_id"]
    assert await other(tool, environment_id=theirs, **arguments)
    unknown = "env_" + "0" * 26
    answers = []
    for identifier in (theirs, unknown):
        response = await caller.server.call(tool, caller.token, environment_id=identifier, **arguments)
        headers = {name: value for name, value in response.headers.items() if name != "x-request-id"}
        answers.append((response.status_code, headers, response.content))
    assert answers[0] == answers[1]
    assert b"There is no such environment in this workspace" in answers[0][2]
    assert (await caller("list_environments"))["environments"] == []


@pytest.mark.divergence("D-16")
@pytest.mark.parametrize("workspace_id", [None, "wks_" + "0" * 26, "acme", "' OR '1'='1"])
async def test_a_missing_workspace_is_an_error_and_no_challenge(caller: Caller, workspace_id: str | None) -> None:
    """A 403 would make the agent request scopes, which would not help."""
    for tool, arguments in (("list_environments", {}), ("create_environment", {"name": "a"})):
        assert await caller(tool, **arguments)
        token = caller.server.issuer.token(workspace_id=workspace_id)
        problem = "acts in no workspace" if workspace_id is None else "The workspace of this client does not exist"
        assert problem in await caller.server.failure(tool, token, **arguments)
    assert count_rows(caller.server, "environment") == 1
    assert (await caller.server.result("whoami", token))["workspace_id"] == workspace_id


@pytest.mark.both_databases
async def test_a_write_and_its_event_are_committed_before_the_answer(caller: Caller) -> None:
    await caller("create_environment", name="staging")
    (event,) = caller.server.audit()
    assert (event["action"], event["object"], event["outcome"]) == ("tool.call", "create_environment", "allowed")
    assert (event["actor"], event["jti"]) == ("agent_1", "jti-1")
    assert event["request_id"].startswith("req_")


@pytest.mark.threat("T-032")
@pytest.mark.both_databases
async def test_a_write_is_rolled_back_if_its_event_cannot_be_recorded(caller: Caller) -> None:
    await caller("create_environment", name="before")
    with caller.server.admin_database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE audit_event RENAME TO hidden")
    assert "Nothing was changed" in await caller.failure("create_environment", name="after")
    assert count_rows(caller.server, "environment") == 1


@pytest.mark.threat("T-032")
@pytest.mark.both_databases
async def test_a_failed_write_leaves_only_a_failure_event(caller: Caller) -> None:
    await caller("create_environment", name="staging")
    await caller.failure("create_environment", name="staging")
    events = [(event["outcome"], event["reason"]) for event in caller.server.audit()]
    conflict = "An environment with that name exists. Choose another name, or call list_environments."
    assert events == [("allowed", None), ("failed", conflict)]


@pytest.mark.parametrize(
    ("workspace_id", "reason"),
    [(None, "the token has no claim workspace_id"), ("wks_" + "0" * 26, f"workspace wks_{'0' * 26} does not exist")],
    ids=["no claim", "no workspace"],
)
async def test_the_audit_log_explains_a_missing_workspace(
    caller: Caller, workspace_id: str | None, reason: str
) -> None:
    await caller("list_environments")
    await caller.server.failure("list_environments", caller.server.issuer.token(workspace_id=workspace_id))
    *_, event = caller.server.audit()
    assert (event["outcome"], event["reason"]) == ("failed", reason)
    assert event["detail"]["remediation"] == (
        "authserver client update agent_1 --claim workspace_id=..., with an id from: resourceserver workspace list"
    )
