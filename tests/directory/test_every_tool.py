"""Properties of every tool, generated from the catalogue, so that a new tool is always covered."""

from collections.abc import AsyncIterator, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from support.clock import FakeClock
from support.databases import Template, Templates
from support.resourceserver import (
    ALL_SCOPES,
    ResourceServer,
    modern_request,
    running_resource_server,
    served,
    settings_in,
)
from support.tool_examples import EXAMPLES, Tenant, arguments_to_see, everything_in, furnish
from support.ungated import ask, proven, without_gate

from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.directory.directory import Directory
from gatehouse.directory.identifiers import is_identifier
from gatehouse.resourceserver.catalogue import Tool, Transactions
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.service.audit.keys import create_audit_keys

pytestmark = pytest.mark.anyio

TOOLS = list(CATALOGUE.tools.values())
READS = [tool for tool in TOOLS if tool.read_only]
WRITES = [tool for tool in TOOLS if not tool.read_only]
SCOPED = [tool for tool in TOOLS if tool.scopes]
WITH_IDENTIFIERS = [
    tool for tool in TOOLS if any(name.endswith("_id") for name in tool.input_schema.get("required", ()))
]


def for_every(tools: list[Tool]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tool", tools, ids=[tool.name for tool in tools])


Furnished = tuple[Template, Tenant]


@pytest.fixture(scope="session")
def tenants() -> dict[str, Tenant]:
    """The tenant in the template of each database."""
    return {}


@pytest.fixture
def furnished(templates: Templates, backend: str, tenants: dict[str, Tenant]) -> Iterator[Furnished]:
    """Two workspaces with one object of each type, created once per database and copied for each test."""

    def prepare(folder: Path, database_url: str) -> None:
        settings = settings_in(folder, database_url=database_url)
        create_audit_keys(settings.audit_keys)
        tenants[backend] = furnish(settings.database)

    template = templates.get(backend, "furnished", prepare)
    yield template, tenants[backend]
    template.discard()


class Caller:
    """A client of a prepared workspace on a running server."""

    def __init__(self, server: ResourceServer, tenant: Tenant) -> None:
        self.server = server
        self.workspace_id = tenant.workspace_id
        self.own = tenant.own
        self.foreign = tenant.foreign

    def token(self, scope: str = ALL_SCOPES) -> str:
        return self.server.issuer.token(scope, workspace_id=self.workspace_id)

    def arguments(self, tool: Tool, **changes: Any) -> dict[str, Any]:
        return {**EXAMPLES[tool.name].arguments(self.own), **changes}

    async def result(self, tool: Tool, scope: str = ALL_SCOPES, **changes: Any) -> dict[str, Any]:
        return await self.server.result(tool.name, self.token(scope), **self.arguments(tool, **changes))

    async def failure(self, tool: Tool, **changes: Any) -> str:
        return await self.server.failure(tool.name, self.token(), **self.arguments(tool, **changes))


@pytest.fixture
async def caller(tmp_path: Path, furnished: Furnished, clock: FakeClock, anyio_backend: str) -> AsyncIterator[Caller]:
    template, tenant = furnished
    async with running_resource_server(tmp_path, template, clock) as server:
        yield Caller(server, tenant)


def least_scope(tool: Tool) -> str:
    return format_scope(tool.scopes) if tool.scopes else "unknown:scope"


def insufficient_scope(tool: Tool) -> str:
    """Return every scope of the catalogue that is not, and does not imply, one of the tool's scopes."""
    return format_scope(
        scope for scope in CATALOGUE.scopes if tool.scopes.isdisjoint(CATALOGUE.hierarchy.closure({scope}))
    )


@pytest.mark.threat("T-025")
def test_every_tool_has_an_example() -> None:
    assert EXAMPLES.keys() == CATALOGUE.tools.keys()
    assert {name for name, example in EXAMPLES.items() if example.seen_by} == {tool.name for tool in WRITES}


# What a tool does


@pytest.mark.threat("T-026")
@pytest.mark.both_databases
@for_every(READS)
async def test_a_read_needs_its_scopes_and_sees_only_its_workspace(caller: Caller, tool: Tool) -> None:
    jsonschema.validate(caller.arguments(tool), dict(tool.input_schema))
    before = everything_in(caller.server)
    result = await caller.result(tool, least_scope(tool))
    jsonschema.validate(result, dict(tool.output_schema))
    assert not [identifier for identifier in asdict(caller.foreign).values() if identifier in str(result)]
    if tool.name.startswith("list_"):
        assert any(isinstance(value, list) and value for value in result.values())
    assert everything_in(caller.server) == before


@pytest.mark.both_databases
@for_every(WRITES)
async def test_a_write_needs_its_scopes_and_survives_a_restart(
    tmp_path: Path, furnished: Furnished, clock: FakeClock, tool: Tool
) -> None:
    template, tenant = furnished
    async with running_resource_server(tmp_path, template, clock) as server:
        caller = Caller(server, tenant)
        jsonschema.validate(caller.arguments(tool), dict(tool.input_schema))
        before = everything_in(server)
        written = await caller.result(tool, least_scope(tool))
        jsonschema.validate(written, dict(tool.output_schema))
        reading, is_shown = EXAMPLES[tool.name].seen_by, EXAMPLES[tool.name].shown
        assert reading is not None
        assert is_shown is not None
    async with served(server.settings, server.issuer) as again:
        events = again.audit(action="tool.call")
        assert {(event["object"], event["outcome"]) for event in events} == {(tool.name, "allowed")}
        *transactions, end = [event["detail"] for event in events]
        made = {name: value for name, value in written.items() if is_identifier(value)}
        assert made
        assert end == ({"done": end["of"], "of": end["of"], **made} if tool.streaming else made)
        # Only a streaming tool has several transactions, and the event of each names the changed rows.
        assert bool(transactions) == tool.streaming
        changed = [identifier for detail in transactions for identifier in detail["changed"]]
        differing = [key[1][0] for key, row in everything_in(again).items() if before.get(key) != row]
        assert sorted(changed) == (sorted(differing) if tool.streaming else [])
        seen = await again.result(reading, caller.token(), **arguments_to_see(reading, caller.own, written))
        assert is_shown(written, seen), seen


# Who may call it


@pytest.mark.threat("T-025")
@for_every(TOOLS)
async def test_gate_and_dispatch_both_reject_missing_scopes(caller: Caller, tool: Tool) -> None:
    before, arguments = everything_in(caller.server), caller.arguments(tool)
    assert (await caller.server.call(tool.name, None, **arguments)).status_code == 401
    if tool.scopes:
        scope = insufficient_scope(tool)
        refused = await caller.server.call(tool.name, caller.token(scope), **arguments)
        assert refused.status_code == 403
        assert f'scope="{format_scope(tool.scopes)}"' in refused.headers["www-authenticate"]
        attach = proven(*scope.split(), workspace_id=caller.workspace_id)
        async with without_gate(caller.server.services.server, attach) as http:
            passed = await ask(http, "2025-11-25", "tools/call", name=tool.name, arguments=arguments)
        assert passed["error"]["code"] == -31043
        assert passed["error"]["data"]["scope"] == format_scope(tool.scopes)
        events = [(event["object"], event["outcome"]) for event in caller.server.audit()]
        assert events[-2:] == [(tool.name, "refused")] * 2
    assert everything_in(caller.server) == before
    assert await caller.result(tool, least_scope(tool))


@for_every([tool for tool in READS if tool.scopes])
async def test_a_write_scope_includes_its_read_scope(caller: Caller, tool: Tool) -> None:
    (scope,) = tool.scopes
    writing = scope.replace(":read", ":write")
    assert await caller.result(tool, scope)
    assert await caller.result(tool, writing)


@for_every(WRITES)
async def test_a_read_scope_does_not_allow_writes(caller: Caller, tool: Tool) -> None:
    (scope,) = tool.scopes
    reading = scope.replace(":write", ":read")
    refused = await caller.server.call(tool.name, caller.token(reading), **caller.arguments(tool))
    assert refused.status_code == 403
    assert await caller.result(tool, scope)


@pytest.mark.threat("T-025")
@for_every(WITH_IDENTIFIERS)
async def test_a_foreign_object_looks_nonexistent(caller: Caller, tool: Tool) -> None:
    before = everything_in(caller.server)
    arguments = caller.arguments(tool)
    named = [name for name in arguments if name.endswith("_id") and name in asdict(caller.own)]
    for name in named:
        theirs = asdict(caller.foreign)[name]
        unknown = theirs.partition("_")[0] + "_" + "0" * 26
        answers = [await caller.failure(tool, **{name: identifier}) for identifier in (theirs, unknown)]
        assert answers[0] == answers[1]
        assert "There is no such" in answers[0]
    assert named
    assert everything_in(caller.server) == before
    assert await caller.result(tool)


@for_every(SCOPED)
async def test_a_missing_workspace_is_explained(caller: Caller, tool: Tool) -> None:
    before = everything_in(caller.server)
    for workspace_id in (None, "wks_" + "0" * 26):
        token = caller.server.issuer.token(workspace_id=workspace_id)
        answer = await caller.server.failure(tool.name, token, **caller.arguments(tool))
        assert "resourceserver workspace create" in answer
    assert everything_in(caller.server) == before
    assert (Transactions if tool.streaming else Directory) in tool.injected.values()


# Invalid arguments


@pytest.mark.threat("T-049")
@for_every(TOOLS)
async def test_an_invalid_argument_is_explained_and_not_echoed(caller: Caller, tool: Tool) -> None:
    before, example = everything_in(caller.server), EXAMPLES[tool.name]
    for wrong, named in ((example.wrong, example.named), ({"zzyzx": "zzyzx"}, "unknown argument")):
        answer = await caller.failure(tool, **wrong)
        assert named in answer
        assert "zzyzx" not in answer.lower()
        event = caller.server.audit()[-1]
        assert (event["object"], event["outcome"], event["reason"]) == (tool.name, "failed", "invalid arguments")
        assert "zzyzx" not in str(event).lower()
    assert everything_in(caller.server) == before
    assert await caller.result(tool)


# Audit events and effects of writes


@pytest.mark.threat("T-025")
@pytest.mark.both_databases
async def test_no_write_is_committed_without_its_event(caller: Caller) -> None:
    before = everything_in(caller.server)
    with caller.server.admin_database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE audit_event RENAME TO hidden")
    for tool in WRITES:
        not_now = "may have been carried out in part" if tool.streaming else "Nothing was changed"
        assert not_now in await caller.failure(tool)
    assert everything_in(caller.server) == before
    with caller.server.admin_database.write() as session:
        session.connection().exec_driver_sql("ALTER TABLE hidden RENAME TO audit_event")
    for tool in WRITES:
        assert await caller.result(tool)


@for_every(WRITES)
async def test_a_write_matches_its_annotations(caller: Caller, tool: Tool) -> None:
    before = everything_in(caller.server)
    await caller.result(tool)
    after = everything_in(caller.server)
    assert after != before
    overwritten = [
        key
        for key, row in before.items()
        if key not in after or any(after[key][column] != value for column, value in row.items() if value is not None)
    ]
    assert tool.destructive or not overwritten
    if tool.idempotent:
        caller.server.issuer.clock.advance(60)
        await caller.server.call(tool.name, caller.token(), **caller.arguments(tool))
        assert everything_in(caller.server) == after


@pytest.mark.threat("T-033")
@for_every([tool for tool in WRITES if not tool.streaming])
async def test_a_repeated_write_with_its_key_changes_nothing(caller: Caller, tool: Tool) -> None:
    key = {"idempotency_key": "a-key-of-1"}
    first = await caller.result(tool, **key)
    after = everything_in(caller.server)
    caller.server.issuer.clock.advance(60)
    assert await caller.result(tool, **key) == first
    assert everything_in(caller.server) == after


async def test_the_list_publishes_scopes_and_annotations(caller: Caller) -> None:
    body, headers = modern_request("tools/list")
    listed = (await caller.server.post(body, caller.token(), headers)).json()["result"]["tools"]
    assert {entry["name"]: entry["_meta"] for entry in listed} == {
        tool.name: {"io.gatehouse/scopes": sorted(tool.scopes)} for tool in TOOLS
    }
    assert {entry["name"]: entry["annotations"] for entry in listed} == {
        tool.name: {
            "readOnlyHint": tool.read_only,
            "destructiveHint": tool.destructive,
            "idempotentHint": tool.idempotent,
            "openWorldHint": False,
        }
        for tool in TOOLS
    }
    assert {tool.name for tool in TOOLS if tool.destructive} == {
        tool.name for tool in WRITES if tool.name.startswith(("remove_", "update_", "set_"))
    }
