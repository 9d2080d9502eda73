"""The tools: what each does, what it refuses, and what it leaves behind."""

from typing import Any

import pytest
from sqlalchemy import text
from support.clock import FakeClock
from support.resourceserver import ALL_SCOPES, ResourceServer, modern_request

from gatehouse.directory.catalogue import CATALOGUE

pytestmark = pytest.mark.anyio


class Caller:
    """An agent in a workspace of its own."""

    def __init__(self, server: ResourceServer, workspace: str, scope: str = ALL_SCOPES) -> None:
        self.server = server
        self.workspace_id = server.create_workspace(workspace)
        self.token = server.issuer.token(scope, workspace_id=self.workspace_id)

    async def __call__(self, tool: str, **arguments: Any) -> dict[str, Any]:
        return await self.server.result(tool, self.token, **arguments)

    async def failure(self, tool: str, **arguments: Any) -> str:
        return await self.server.failure(tool, self.token, **arguments)


@pytest.fixture
async def acme(resourceserver: ResourceServer) -> Caller:
    return Caller(resourceserver, "acme")


@pytest.fixture
async def globex(resourceserver: ResourceServer) -> Caller:
    return Caller(resourceserver, "globex")


def rows(server: ResourceServer, table: str) -> int:
    with server.admin_database.write() as session:
        return int(session.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


# What each tool does


async def test_whoami_tells_what_the_token_says(acme: Caller, clock: FakeClock) -> None:
    assert await acme("whoami") == {
        "client_id": "agent_1",
        "scopes": sorted(ALL_SCOPES.split()),
        "workspace_id": acme.workspace_id,
        "expires_at": int(clock()) + 300,
    }


async def test_an_environment_that_was_created_can_be_read_and_listed(acme: Caller, clock: FakeClock) -> None:
    created = await acme("create_environment", name="staging", kind="staging")
    identifier = created.pop("environment_id")
    assert created == {"name": "staging", "kind": "staging", "created_at": int(clock())}
    whole = {"environment_id": identifier, **created}
    assert await acme("get_environment_details", environment_id=identifier) == whole
    assert await acme("list_environments") == {"environments": [whole], "next_page_token": None}


async def test_an_organization_that_was_created_is_listed_in_its_environment(acme: Caller, clock: FakeClock) -> None:
    here = (await acme("create_environment", name="here"))["environment_id"]
    there = (await acme("create_environment", name="there"))["environment_id"]
    created = await acme("create_organization", environment_id=here, name="Łódź & Søns", external_id="crm:1")
    assert created.items() >= {"environment_id": here, "name": "Łódź & Søns", "external_id": "crm:1"}.items()
    listed = await acme("list_organizations", environment_id=here)
    assert listed == {"organizations": [created], "next_page_token": None}
    assert (await acme("list_organizations", environment_id=there))["organizations"] == []


async def test_identifiers_tell_what_they_name(acme: Caller) -> None:
    environment = await acme("create_environment", name="staging")
    organization = await acme("create_organization", environment_id=environment["environment_id"], name="A")
    for identifier, prefix in (
        (acme.workspace_id, "wks_"),
        (environment["environment_id"], "env_"),
        (organization["organization_id"], "org_"),
    ):
        assert identifier.startswith(prefix)
        assert len(identifier) == 30
    # An identifier of another type is not looked up at all.
    answer = await acme.failure("list_organizations", environment_id=organization["organization_id"])
    assert "environment_id" in answer


# The list of tools


@pytest.mark.parametrize(
    ("scope", "effective"),
    [
        pytest.param(ALL_SCOPES, set(ALL_SCOPES.split()), id="all"),
        pytest.param("env:write org:write wks:write", set(ALL_SCOPES.split()), id="writers read"),
        pytest.param("org:write", {"org:read", "org:write"}, id="org"),
        pytest.param("env:read", {"env:read"}, id="reader"),
        pytest.param("unknown:scope", set(), id="foreign scope"),
    ],
)
async def test_the_list_holds_what_the_caller_may_call_in_a_fixed_order(
    resourceserver: ResourceServer, scope: str, effective: set[str]
) -> None:
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(scope), headers)).json()["result"]
    expected = [name for name, tool in sorted(CATALOGUE.tools.items()) if tool.scopes <= effective]
    assert {"search_docs", "whoami"} <= set(expected)
    assert [tool["name"] for tool in result["tools"]] == expected


@pytest.mark.divergence("D-11")
async def test_the_list_is_for_one_caller_and_not_to_be_kept(resourceserver: ResourceServer) -> None:
    """MCP 2026-07-28, "Caching": a filtered list that another principal is shown would be a wrong one."""
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(), headers)).json()["result"]
    assert (result["cacheScope"], result["ttlMs"]) == ("private", 0)
    assert "nextCursor" not in result


async def test_the_list_tells_scopes_and_effects(resourceserver: ResourceServer) -> None:
    body, headers = modern_request("tools/list")
    result = (await resourceserver.post(body, resourceserver.issuer.token(), headers)).json()["result"]
    tools = {tool["name"]: tool for tool in result["tools"]}
    assert tools["create_organization"]["_meta"] == {"io.gatehouse/scopes": ["org:write"]}
    assert not tools["create_organization"]["annotations"]["readOnlyHint"]
    assert tools["list_organizations"]["annotations"]["readOnlyHint"]
    assert tools["whoami"]["_meta"] == {"io.gatehouse/scopes": []}


# Pages


@pytest.mark.both_databases
async def test_pages_hold_every_entry_once_the_oldest_first(acme: Caller, clock: FakeClock) -> None:
    names = []
    for number in (3, 1, 4, 0, 2):
        clock.advance(1)
        names.append(f"env-{number}")
        await acme("create_environment", name=names[-1])
    for page_size, lengths in ((2, [2, 2, 1]), (5, [5]), (4, [4, 1]), (1, [1] * 5)):
        pages, page_token = [], None
        while not pages or page_token is not None:
            sent = {"page_size": page_size, **({"page_token": page_token} if page_token else {})}
            page = await acme("list_environments", **sent)
            pages.append([environment["name"] for environment in page["environments"]])
            page_token = page["next_page_token"]
        assert [len(page) for page in pages] == lengths
        assert [name for page in pages for name in page] == names


async def test_organizations_come_in_pages_too(acme: Caller, clock: FakeClock) -> None:
    environment = (await acme("create_environment", name="staging"))["environment_id"]
    for name in ("A", "B", "C"):
        clock.advance(1)
        await acme("create_organization", environment_id=environment, name=name)
    first = await acme("list_organizations", environment_id=environment, page_size=2)
    rest = await acme("list_organizations", environment_id=environment, page_token=first["next_page_token"])
    assert [o["name"] for o in first["organizations"] + rest["organizations"]] == ["A", "B", "C"]
    assert rest["next_page_token"] is None


@pytest.mark.parametrize(
    "page_token",
    [
        pytest.param("!!!", id="not base64"),
        pytest.param("zzzzz", id="bad length"),
        pytest.param("\u00ff", id="not ASCII"),
        pytest.param("AAAA", id="NUL bytes"),
        pytest.param("JyBPUiAxPTEgLS0", id="SQL"),
        pytest.param("b3JnXzAxbWNjNXJtMDBqZXlkN2NkcnY2NmhreGdz", id="of another list"),
    ],
)
async def test_a_page_token_that_no_list_returned_is_refused(acme: Caller, page_token: str) -> None:
    assert await acme("list_environments")
    answer = await acme.failure("list_environments", page_token=page_token)
    assert answer == "page_token is not one that this list returned. Leave it out to start again."


# What is refused


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
        pytest.param("create_environment", {"name": "a", "zzyzx": 1}, "does not have", id="unknown argument"),
        pytest.param("list_environments", {"page_size": "5"}, "page_size", id="text for number"),
        pytest.param("list_environments", {"page_size": True}, "page_size", id="bool for number"),
        pytest.param("list_environments", {"page_size": 5.5}, "page_size", id="fraction"),
        pytest.param("list_environments", {"page_size": 0}, "page_size", id="zero"),
        pytest.param("list_environments", {"page_size": 101}, "page_size", id="too many"),
        pytest.param("list_environments", {"page_token": ""}, "page_token", id="empty token"),
        pytest.param("list_environments", {"page_token": "z" * 65}, "page_token", id="long token"),
        pytest.param("list_environments", {"directory": "zzyzx"}, "does not have", id="injected parameter"),
        pytest.param("whoami", {"claims": {"client_id": "zzyzx"}}, "does not have", id="injected claims"),
        pytest.param("get_environment_details", {"environment_id": "../zzyzx"}, "environment_id", id="path"),
        pytest.param("get_environment_details", {"environment_id": "env_' OR '1'='1"}, "environment_id", id="SQL"),
        pytest.param("create_organization", {"environment_id": "zzyzx", "name": "a"}, "environment_id", id="id"),
    ],
)
async def test_wrong_arguments_are_explained_and_never_repeated(
    acme: Caller, tool: str, arguments: dict[str, Any], named: str
) -> None:
    answer = await acme.failure(tool, **arguments)
    assert named in answer
    assert "zz" not in answer.lower()
    assert "pydantic" not in answer
    assert rows(acme.server, "environment") == 0
    event = acme.server.audit()[-1]
    assert (event["action"], event["object"], event["outcome"]) == ("tool.call", tool, "failed")
    assert "zz" not in str(event)


@pytest.mark.threat("T-050")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("", id="empty"),
        pytest.param("z" * 129, id="too long"),
        pytest.param("a\x00b", id="NUL"),
        pytest.param("a\nb", id="line feed"),
        pytest.param("a\x1b[31mb", id="ANSI escape"),
        pytest.param("a\x7fb", id="delete"),
        pytest.param("a\x9b31mb", id="C1 control sequence introducer"),
        pytest.param("a\x85b", id="C1 next line"),
        pytest.param("\u202egnp.exe\u2066", id="bidirectional"),
        pytest.param("Acme\U000e0049\U000e0067", id="tags, which spell words that only an agent reads"),
        pytest.param("Ac\u200bme", id="zero-width space"),
    ],
)
async def test_a_name_with_control_characters_is_refused(acme: Caller, name: str) -> None:
    """CWE-150; CVE-2021-42574 and CWE-451: nobody who reviews a name sees what it holds (OWASP LLM01:2025)."""
    environment = (await acme("create_environment", name="staging"))["environment_id"]
    seen = ["<b>O'Hara & \u201cS\u00f8ns\u201d</b>", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f33e"]
    for visible in seen:
        assert await acme("create_organization", environment_id=environment, name=visible)
    assert "name" in await acme.failure("create_organization", environment_id=environment, name=name)
    assert rows(acme.server, "organization") == len(seen)


@pytest.mark.both_databases
async def test_a_name_that_is_taken_is_a_conflict_and_changes_nothing(acme: Caller, globex: Caller) -> None:
    await acme("create_environment", name="staging", kind="staging")
    answer = await acme.failure("create_environment", name="staging", kind="production")
    assert "There is an environment of that name" in answer
    assert [e["kind"] for e in (await acme("list_environments"))["environments"]] == ["staging"]
    # Names are a workspace's own: a conflict tells nothing about another one.
    assert await globex("create_environment", name="staging")


@pytest.mark.both_databases
async def test_an_external_id_that_is_taken_is_a_conflict_in_its_environment_only(acme: Caller) -> None:
    here = (await acme("create_environment", name="here"))["environment_id"]
    there = (await acme("create_environment", name="there"))["environment_id"]
    await acme("create_organization", environment_id=here, name="A", external_id="crm-1")
    answer = await acme.failure("create_organization", environment_id=here, name="B", external_id="crm-1")
    assert "There is an organization of that external_id" in answer
    assert await acme("create_organization", environment_id=there, name="A", external_id="crm-1")
    # Without one, the same name may come twice.
    assert await acme("create_organization", environment_id=here, name="A")


@pytest.mark.threat("T-026")
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        pytest.param("get_environment_details", {}, id="read"),
        pytest.param("list_organizations", {}, id="list"),
        pytest.param("create_organization", {"name": "A"}, id="write"),
    ],
)
async def test_an_object_of_another_workspace_answers_as_one_that_does_not_exist(
    acme: Caller, globex: Caller, tool: str, arguments: dict[str, Any]
) -> None:
    theirs = (await globex("create_environment", name="secret"))["environment_id"]
    assert await globex(tool, environment_id=theirs, **arguments)
    unknown = "env_" + "0" * 26
    answers = []
    for identifier in (theirs, unknown):
        response = await acme.server.call(tool, acme.token, environment_id=identifier, **arguments)
        headers = {name: value for name, value in response.headers.items() if name != "x-request-id"}
        answers.append((response.status_code, headers, response.content))
    assert answers[0] == answers[1]
    assert b"There is no such environment in this workspace" in answers[0][2]
    assert (await acme("list_environments"))["environments"] == []


@pytest.mark.divergence("D-16")
@pytest.mark.parametrize("workspace_id", [None, "wks_" + "0" * 26, "acme", "' OR '1'='1"])
async def test_without_a_workspace_the_result_is_an_error_and_no_challenge(
    acme: Caller, workspace_id: str | None
) -> None:
    """A 403 would make the agent ask for scopes that do not help."""
    for tool, arguments in (("list_environments", {}), ("create_environment", {"name": "a"})):
        assert await acme(tool, **arguments)
        token = acme.server.issuer.token(workspace_id=workspace_id)
        problem = "acts in no workspace" if workspace_id is None else "The workspace of this client does not exist"
        assert problem in await acme.server.failure(tool, token, **arguments)
    assert rows(acme.server, "environment") == 1
    assert (await acme.server.result("whoami", token))["workspace_id"] == workspace_id


# What is left behind


@pytest.mark.both_databases
async def test_a_write_and_its_event_are_on_disk_when_the_answer_is_there(acme: Caller) -> None:
    await acme("create_environment", name="staging")
    (event,) = acme.server.audit()
    assert (event["action"], event["object"], event["outcome"]) == ("tool.call", "create_environment", "allowed")
    assert (event["actor"], event["jti"]) == ("agent_1", "jti-1")
    assert event["request_id"].startswith("req_")


@pytest.mark.threat("T-032")
@pytest.mark.both_databases
async def test_a_write_whose_event_cannot_be_recorded_does_not_happen(acme: Caller) -> None:
    await acme("create_environment", name="before")
    with acme.server.admin_database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE audit_event RENAME TO hidden")
    assert "Nothing was changed" in await acme.failure("create_environment", name="after")
    assert rows(acme.server, "environment") == 1


@pytest.mark.threat("T-032")
@pytest.mark.both_databases
async def test_a_write_that_fails_leaves_an_event_of_its_failure_only(acme: Caller) -> None:
    await acme("create_environment", name="staging")
    await acme.failure("create_environment", name="staging")
    events = [(event["outcome"], event["reason"]) for event in acme.server.audit()]
    conflict = "There is an environment of that name. Choose another, or call list_environments."
    assert events == [("allowed", None), ("failed", conflict)]


@pytest.mark.parametrize(
    ("workspace_id", "reason"),
    [(None, "the token has no claim workspace_id"), ("wks_" + "0" * 26, f"workspace wks_{'0' * 26} does not exist")],
    ids=["no claim", "no workspace"],
)
async def test_the_trail_says_in_words_why_a_client_has_no_workspace_and_what_gives_it_one(
    acme: Caller, workspace_id: str | None, reason: str
) -> None:
    await acme("list_environments")
    await acme.server.failure("list_environments", acme.server.issuer.token(workspace_id=workspace_id))
    *_, event = acme.server.audit()
    assert (event["outcome"], event["reason"]) == ("failed", reason)
    assert event["detail"]["remediation"] == (
        "authserver client update agent_1 --claim workspace_id=..., with an id from: resourceserver workspace list"
    )
