"""Idempotency keys: replays, conflicts and expiry."""

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, Field, SecretStr
from sqlalchemy import text
from support.clock import FakeClock
from support.databases import Template
from support.keyed_calls import KEY, Worked, outcomes, rows, serving
from support.resourceserver import ResourceServer, modern_request
from support.ungated import ask, proven, without_gate

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.directory import Directory
from gatehouse.directory.environments import create_environment
from gatehouse.resourceserver.catalogue import (
    ANY_VALID_TOKEN,
    Catalogue,
    ToolGroup,
)
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.db.models import IdempotencyKeyRow
from gatehouse.resourceserver.db.request_database import RequestDatabase
from gatehouse.resourceserver.dispatch.idempotency import (
    KEPT_FOR,
    MAX_RESULT,
    IdempotencyKeys,
    KeyedCall,
    keyed_call,
)
from gatehouse.shared.protocol.claims import AccessClaims

pytestmark = [pytest.mark.anyio, pytest.mark.both_databases]

CALL = KeyedCall("", "agent_1", "work", KEY, b"digest")


class Nothing(BaseModel):
    """An empty result."""


@pytest.fixture(params=["2025-11-25", "2026-07-28"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def workspace_id(resourceserver: ResourceServer) -> str:
    return resourceserver.create_workspace()


@pytest.fixture
def token(resourceserver: ResourceServer, workspace_id: str) -> str:
    return resourceserver.issuer.token(workspace_id=workspace_id)


async def send(server: ResourceServer, version: str, token: str, tool: str, **arguments: Any) -> dict[str, Any]:
    body, headers = modern_request("tools/call", name=tool, arguments=arguments)
    if version != "2026-07-28":
        body["params"].pop("_meta")
        headers = {"MCP-Protocol-Version": version}
    response = await server.post(body, token, headers)
    assert response.status_code == 200, response.text
    result: dict[str, Any] = response.json()["result"]
    return result


# A repeated call


@pytest.mark.threat("T-033")
async def test_a_repeated_call_with_the_same_key_runs_once(
    resourceserver: ResourceServer, token: str, version: str
) -> None:
    arguments = {"name": "staging", "idempotency_key": KEY}
    first = await send(resourceserver, version, token, "create_environment", **arguments)
    again = await send(resourceserver, version, token, "create_environment", **arguments)
    assert not first["isError"]
    assert {**again, "_meta": None} == {**first, "_meta": None}
    assert rows(resourceserver) == 1
    assert outcomes(resourceserver) == [("allowed", None, False), ("allowed", None, True)]
    made, replayed = (event["detail"] for event in resourceserver.audit(action="tool.call"))
    assert made == {"environment_id": first["structuredContent"]["environment_id"]}
    assert replayed == {**made, "replayed": True}


async def test_without_a_key_a_repeated_call_runs_again(resourceserver: ResourceServer, token: str) -> None:
    environment_id = (await resourceserver.result("create_environment", token, name="staging"))["environment_id"]
    made = [
        await resourceserver.result("create_organization", token, environment_id=environment_id, name="Acme", **key)
        for key in ({}, {"idempotency_key": None}, {})
    ]
    assert len({organization["organization_id"] for organization in made}) == 3
    assert rows(resourceserver, IdempotencyKeyRow) == 0


async def test_a_repeated_call_may_spell_out_the_defaults(resourceserver: ResourceServer, token: str) -> None:
    first = await resourceserver.result("create_environment", token, name="staging", idempotency_key=KEY)
    again = await resourceserver.result(
        "create_environment", token, idempotency_key=KEY, kind="development", name="staging"
    )
    assert again == first


@pytest.mark.threat("T-035")
async def test_other_arguments_with_the_same_key_are_a_conflict(
    resourceserver: ResourceServer, token: str, version: str
) -> None:
    first = await send(resourceserver, version, token, "create_environment", name="staging", idempotency_key=KEY)
    other = await send(resourceserver, version, token, "create_environment", name="production", idempotency_key=KEY)
    assert not first["isError"]
    assert other["isError"]
    assert "other arguments" in other["content"][0]["text"]
    assert rows(resourceserver) == 1
    outcome, reason, replayed = outcomes(resourceserver)[1]
    assert (outcome, "with other arguments" in reason, replayed) == ("failed", True, False)
    again = await send(resourceserver, version, token, "create_environment", name="staging", idempotency_key=KEY)
    assert again["structuredContent"] == first["structuredContent"]


@pytest.mark.threat("T-035")
async def test_secret_and_excluded_arguments_are_compared_too(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """draft-ietf-httpapi-idempotency-key-header 2.7: a key with another payload is an error, not a replay."""
    runs = []

    def work(directory: Directory, secret: SecretStr, hidden: Annotated[str, Field(exclude=True)]) -> Worked:
        """Use a secret."""
        runs.append((secret.get_secret_value(), hidden))
        return Worked(text="done")

    async with serving(tmp_path, resourceserver_template, clock, work) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())
        sent = {"secret": "hunter2", "hidden": "a", "idempotency_key": KEY}
        assert await server.result("work", token, **sent) == await server.result("work", token, **sent)
        for other in ({"secret": "hunter3"}, {"hidden": "b"}):
            assert "was used for this tool with other arguments" in await server.failure("work", token, **sent | other)
    assert runs == [("hunter2", "a")]


@pytest.mark.threat("T-034")
async def test_a_key_belongs_to_one_workspace_client_and_tool(resourceserver: ResourceServer, token: str) -> None:
    async def invite(token: str) -> str:
        member = await resourceserver.result(
            "invite_workspace_member", token, email="ada@example.com", role="admin", idempotency_key=KEY
        )
        return str(member["user_id"])

    own = await invite(token)
    elsewhere = resourceserver.issuer.token(workspace_id=resourceserver.create_workspace("globex"))
    assert await invite(elsewhere) != own
    await resourceserver.result("create_environment", token, name="staging", idempotency_key=KEY)
    assert await invite(token) == own
    assert outcomes(resourceserver)[-1][2]


@pytest.mark.threat("T-034")
async def test_another_client_of_the_workspace_gets_no_result(
    resourceserver: ResourceServer, token: str, workspace_id: str
) -> None:
    other = resourceserver.issuer.token(workspace_id=workspace_id, client_id="agent_2", sub="agent_2")
    first = await resourceserver.result("create_environment", token, name="staging", idempotency_key=KEY)
    answer = await resourceserver.failure("create_environment", other, name="staging", idempotency_key=KEY)
    assert first["environment_id"] not in answer
    outcome, reason, replayed = outcomes(resourceserver)[-1]
    assert (outcome, "An environment with that name" in reason, replayed) == ("failed", True, False)


@pytest.mark.threat("T-034")
def test_a_key_belongs_to_the_static_claims_of_a_token() -> None:
    """CWE-694: a client that is moved to another tenant must not receive a result of the first one."""
    tool, sent = CATALOGUE.tools["create_environment"], {"name": "staging", "idempotency_key": KEY}

    def static_claims(**static: str) -> str:
        claims = AccessClaims("iss", "agent_1", "agent_1", "https://rs", 0, 1, "jti-1", frozenset(), static)
        call = keyed_call(claims, tool, tool.arguments(**sent), sent)
        assert call is not None
        return call.static_claims

    assert static_claims(team="a", workspace_id="b") == static_claims(workspace_id="b", team="a")
    others = [
        {},
        {"team": "a b"},
        {"team": "a", "b": ""},
        {"workspace_id": "a b"},
        {"team": " a b"},
        {"team": "x" * 256},
    ]
    assert {len(static_claims(**static)) for static in others} == {64}
    assert len({static_claims(**static) for static in others}) == len(others)


async def test_a_tool_that_writes_elsewhere_takes_no_key(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    """It changes something outside the call's transaction, so the server cannot guarantee that it runs once."""
    runs = []

    async def work() -> Nothing:
        """Return an empty result."""
        runs.append("work")
        return Nothing()

    async with serving(tmp_path, resourceserver_template, clock, work) as server:
        assert await server.result("work", server.issuer.token()) == {}
        answer = await server.failure("work", server.issuer.token(), idempotency_key=KEY)
    assert "unknown argument; there are no arguments" in answer
    assert runs == ["work"]


@pytest.mark.parametrize(
    "key", ["short-7", "x" * 129, "with space", "caf\u00e9-caf\u00e9", "line-line\n", "", 12345678]
)
async def test_the_error_of_a_malformed_key_does_not_repeat_it(
    resourceserver: ResourceServer, token: str, key: Any
) -> None:
    answer = await resourceserver.failure("create_environment", token, name="staging", idempotency_key=key)
    assert "idempotency_key" in answer
    assert not key or str(key) not in answer
    assert rows(resourceserver) == 0
    for sound in ("x" * 8, "x" * 128):
        await resourceserver.result("create_environment", token, name=f"s-{len(sound)}", idempotency_key=sound)


# Expiry


async def test_a_key_is_valid_for_24_hours(resourceserver: ResourceServer, workspace_id: str, clock: FakeClock) -> None:
    async def create() -> Any:
        # The server polls in the meantime: a status list is not trusted for a day.
        await resourceserver.services.statuses.refresh()
        token = resourceserver.issuer.token(workspace_id=workspace_id)
        arguments = {"email": "ada@example.com", "role": "admin", "idempotency_key": KEY}
        member = await resourceserver.result("invite_workspace_member", token, **arguments)
        await resourceserver.call("remove_workspace_member", token, user_id=member["user_id"])
        return member["user_id"]

    first = await create()
    clock.advance(KEPT_FOR - 1)
    assert await create() == first
    clock.advance(1)
    second = await create()
    assert second != first
    clock.advance(KEPT_FOR - 1)
    assert await create() == second
    assert rows(resourceserver, IdempotencyKeyRow) == 1


@pytest.mark.threat("T-036")
async def test_old_keys_are_removed_once_a_minute(resourceserver: ResourceServer, clock: FakeClock) -> None:
    database, slept = RequestDatabase(resourceserver.settings.database), list[float]()
    keys = IdempotencyKeys(database, clock)

    async def keep(key: str) -> None:
        await database.run_write(partial(keys.reserve, call=KeyedCall("", "agent_1", "work", key, b"digest")))

    await keep("old-key-1")
    clock.advance(KEPT_FOR)
    await keep("new-key-1")
    left: list[int] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        left.append(rows(resourceserver, IdempotencyKeyRow))
        if len(left) == 2:
            clock.advance(KEPT_FOR)
        if len(left) == 3:
            raise TimeoutError

    with pytest.raises(TimeoutError):
        await keys.prune_regularly(sleep)
    assert (left, slept) == ([2, 1, 0], [60.0] * 3)
    database.close()


async def test_a_failed_removal_of_old_keys_is_logged(
    resourceserver: ResourceServer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    database = RequestDatabase(resourceserver.settings.database)
    with resourceserver.admin_database.write() as session:
        session.execute(text("DROP TABLE idempotency_key"))
    await IdempotencyKeys(database, clock).prune()
    database.close()
    assert "old idempotency keys were not removed" in caplog.text


async def test_no_failed_removal_ends_the_task(
    resourceserver: ResourceServer,
    clock: FakeClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """An exception of the task would end the lifespan: keys and status lists would not be polled any more."""
    database, slept = RequestDatabase(resourceserver.settings.database), list[float]()

    def no_thread(_: object) -> None:
        raise RuntimeError("can't start new thread")

    async def sleep(seconds: float) -> None:
        slept.append(seconds)
        if len(slept) == 3:
            raise TimeoutError

    monkeypatch.setattr(database, "run_write", no_thread)
    with pytest.raises(TimeoutError):
        await IdempotencyKeys(database, clock).prune_regularly(sleep)
    database.close()
    assert caplog.text.count("old idempotency keys were not removed: RuntimeError") == 2


# Failed calls


async def test_a_call_that_fails_leaves_its_key_free(resourceserver: ResourceServer, token: str) -> None:
    taken = await resourceserver.result("invite_workspace_member", token, email="ada@example.com", role="admin")
    arguments = {"email": "ada@example.com", "role": "member", "idempotency_key": KEY}
    await resourceserver.failure("invite_workspace_member", token, **arguments)
    assert rows(resourceserver, IdempotencyKeyRow) == 0
    await resourceserver.result("remove_workspace_member", token, user_id=taken["user_id"])
    member = await resourceserver.result("invite_workspace_member", token, **arguments)
    assert member["role"] == "member"
    assert [replayed for _, _, replayed in outcomes(resourceserver)] == [False] * 4


@pytest.mark.threat("T-033")
async def test_a_call_whose_event_cannot_be_recorded_leaves_its_key_free(
    resourceserver: ResourceServer, token: str
) -> None:
    arguments = {"name": "staging", "idempotency_key": KEY}
    with resourceserver.admin_database.write() as session:
        session.execute(text("ALTER TABLE audit_event RENAME TO hidden"))
    assert "Nothing was changed" in await resourceserver.failure("create_environment", token, **arguments)
    with resourceserver.admin_database.write() as session:
        session.execute(text("ALTER TABLE hidden RENAME TO audit_event"))
    assert (rows(resourceserver), rows(resourceserver, IdempotencyKeyRow)) == (0, 0)
    await resourceserver.result("create_environment", token, **arguments)
    # The event of the failure waits for the table, and may be written later.
    assert ("allowed", None, False) in outcomes(resourceserver)


async def test_a_replay_that_cannot_be_recorded_is_not_answered(resourceserver: ResourceServer, token: str) -> None:
    arguments = {"name": "staging", "idempotency_key": KEY}
    await resourceserver.result("create_environment", token, **arguments)
    with resourceserver.admin_database.write() as session:
        session.execute(text("ALTER TABLE audit_event RENAME TO hidden"))
    assert "Try again" in await resourceserver.failure("create_environment", token, **arguments)


@pytest.mark.threat("T-036")
async def test_a_result_that_is_too_large_to_keep_is_rolled_back(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    def work(directory: Directory, size: int) -> Worked:
        """Create an environment, and return a long text."""
        create_environment(directory, f"made-{size}", "staging")
        return Worked(text="x" * (size - len('{"text": ""}')))

    async with serving(tmp_path, resourceserver_template, clock, work, ["env:write"]) as server:
        token = server.issuer.token(workspace_id=server.create_workspace())
        await server.result("work", token, size=MAX_RESULT, idempotency_key=KEY)
        assert rows(server) == 1
        answer = await server.failure("work", token, size=MAX_RESULT + 1, idempotency_key=f"{KEY}-2")
        assert "without idempotency_key" in answer
        assert (rows(server), rows(server, IdempotencyKeyRow)) == (1, 1)
        await server.result("work", token, size=MAX_RESULT + 1)


# Authorization of a replay


@pytest.mark.threat("T-034")
async def test_a_caller_that_lost_the_scope_gets_no_replay(
    resourceserver: ResourceServer, token: str, workspace_id: str
) -> None:
    arguments = {"name": "staging", "idempotency_key": KEY}
    first = await resourceserver.result("create_environment", token, **arguments)
    narrowed = resourceserver.issuer.token("env:read", workspace_id=workspace_id)
    refused = await resourceserver.call("create_environment", narrowed, **arguments)
    assert refused.status_code == 403
    attach = proven("env:read", workspace_id=workspace_id)
    async with without_gate(resourceserver.services.server, attach) as http:
        passed = await ask(http, "2025-11-25", "tools/call", name="create_environment", arguments=arguments)
    assert passed["error"]["code"] == -31043
    assert first["environment_id"] not in refused.text + str(passed)
    assert await resourceserver.result("create_environment", token, **arguments) == first


# Declarations


@pytest.mark.divergence("D-15")
def test_only_tools_that_write_in_one_transaction_take_a_key() -> None:
    taking = {tool.name for tool in CATALOGUE.tools.values() if "idempotency_key" in tool.input_schema["properties"]}
    assert taking == {tool.name for tool in CATALOGUE.tools.values() if not (tool.read_only or tool.streaming)}
    for name in taking:
        tool = CATALOGUE.tools[name]
        assert "idempotency_key" not in tool.input_schema.get("required", ())
        string, null = tool.input_schema["properties"]["idempotency_key"]["anyOf"]
        assert string["pattern"] == "^[A-Za-z0-9._:-]{8,128}$"
        assert null == {"type": "null"}


@pytest.mark.parametrize("read_only", [True, False])
def test_a_tool_cannot_declare_its_own_key(read_only: bool) -> None:
    async def work(idempotency_key: str) -> Worked:
        """Do something."""
        return Worked(text=idempotency_key)

    group = ToolGroup()
    group.tool(scopes=ANY_VALID_TOKEN, read_only=read_only)(work)
    with pytest.raises(InvalidCatalogue, match=r"test_idempotency.py:\d+: work has the argument idempotency_key"):
        Catalogue("test", [], [group])
