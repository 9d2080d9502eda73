"""Tools of a catalogue that a user writes: they run, are refused and are recorded like any other."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path

import anyio
import pytest
from support.clock import FakeClock
from support.databases import Template
from support.declarations import Answer
from support.resourceserver import ResourceServer, running_resource_server

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.environments import Environment, create_environment
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolFailed, ToolGroup
from gatehouse.shared.protocol.claims import AccessClaims


class Side(Enum):
    """Which way a door opens."""

    IN = "in"
    OUT = "out"


class Doors:
    """A user's catalogue that records the calls of its tools."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.lives: list[str] = []
        self.waiting = anyio.Event()
        tools = ToolGroup()

        @tools.tool(scopes=["door:open"])
        async def open_door(claims: AccessClaims, name: str, side: Side = Side.IN) -> Answer:
            """Open a door."""
            if name == "wall":
                raise ToolFailed("That is a wall. Try a door.")
            self.opened.append(f"{claims.client_id} {name}{' outwards' if side is Side.OUT else ''}")
            if name == "slow":
                self.waiting.set()
                await anyio.sleep_forever()
            return Answer(text=self.lives[-1])

        @tools.tool(scopes=["door:open"])
        def build(directory: Directory, name: str) -> Environment:
            """Create an environment."""
            return create_environment(directory, name)

        @asynccontextmanager
        async def lifespan() -> AsyncIterator[None]:
            self.lives.append("begun")
            yield
            self.lives.append("ended")

        scopes = [Scope("door:open", "Open doors"), Scope("door:see", "See doors")]
        self.catalogue = Catalogue(
            "Doors",
            scopes,
            [tools],
            instructions="Knock first.",
            lifespan=lifespan,
            providers={Directory: open_directory},
        )


@pytest.fixture
async def doors(anyio_backend: str) -> Doors:
    return Doors()


@pytest.fixture
async def server(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, doors: Doors
) -> AsyncIterator[ResourceServer]:
    async with running_resource_server(tmp_path / "served", resourceserver_template, clock, doors.catalogue) as server:
        yield server


@pytest.mark.anyio
async def test_a_custom_tool_is_refused_and_recorded_like_any_other(server: ResourceServer, doors: Doors) -> None:
    forbidden = await server.call("open_door", server.issuer.token("door:see"), name="front")
    assert forbidden.status_code == 403
    assert 'scope="door:open"' in forbidden.headers["www-authenticate"]
    assert doors.opened == []
    answer = await server.result("open_door", server.issuer.token("door:open"), name="front")
    assert answer == {"text": "begun"}
    assert doors.opened == ["agent_1 front"]
    assert [(event["outcome"], event["object"]) for event in server.audit()] == [
        *(("refused", "open_door"), ("allowed", "open_door")),
    ]


@pytest.mark.anyio
async def test_a_value_of_an_enumeration_is_sent_as_its_text(server: ResourceServer, doors: Doors) -> None:
    token = server.issuer.token("door:open")
    assert await server.result("open_door", token, name="front", side="out")
    assert doors.opened == ["agent_1 front outwards"]
    assert "side: Input should be 'in' or 'out'" in await server.failure("open_door", token, name="front", side="up")


@pytest.mark.threat("T-053")
@pytest.mark.anyio
async def test_a_caller_cannot_send_its_own_claims(server: ResourceServer, doors: Doors) -> None:
    failure = await server.failure("open_door", server.issuer.token("door:open"), name="a", claims={"client_id": "x"})
    assert "unknown argument" in failure
    assert doors.opened == []


@pytest.mark.anyio
async def test_the_text_of_tool_failed_reaches_the_agent(server: ResourceServer) -> None:
    token = server.issuer.token("door:open")
    assert await server.failure("open_door", token, name="wall") == "That is a wall. Try a door."
    (event,) = server.audit()
    assert (event["outcome"], event["reason"]) == ("failed", "ToolFailed")


@pytest.mark.anyio
async def test_only_a_tool_that_asks_for_the_directory_needs_a_workspace(server: ResourceServer) -> None:
    token = server.issuer.token("door:open")
    assert await server.result("open_door", token, name="front")
    assert "acts in no workspace" in await server.failure("build", token, name="ci")
    inside = server.issuer.token("door:open", workspace_id=server.create_workspace())
    built = await server.result("build", inside, name="ci")
    assert server.audit()[-1]["detail"]["environment_id"] == built["environment_id"]


@pytest.mark.threat("T-060")
@pytest.mark.anyio
async def test_an_unrecorded_change_elsewhere_is_reported_as_possible(server: ResourceServer) -> None:
    """A change in the directory is rolled back with its event; a change elsewhere cannot be."""
    token = server.issuer.token("door:open", workspace_id=server.create_workspace())
    assert await server.result("open_door", token, name="front")
    with server.admin_database.write() as session:
        session.connection().exec_driver_sql("DROP TABLE audit_event")
    assert "may have been carried out in part" in await server.failure("open_door", token, name="back")
    assert "Nothing was changed" in await server.failure("build", token, name="ci")


@pytest.mark.threat("T-059")
@pytest.mark.both_databases
@pytest.mark.anyio
async def test_a_cancelled_write_is_recorded_and_blocks_no_other(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, doors: Doors
) -> None:
    async with anyio.create_task_group() as tasks:
        async with running_resource_server(tmp_path / "a", resourceserver_template, clock, doors.catalogue) as server:
            token = server.issuer.token("door:open", workspace_id=server.create_workspace())
            tasks.start_soon(lambda: server.call("open_door", token, name="slow"))
            await doors.waiting.wait()
            # Another write: it would wait if the slow one held a transaction.
            assert await server.result("build", token, name="ci")
        tasks.cancel_scope.cancel()
        events = [(event["object"], event["outcome"], event["reason"]) for event in server.audit()]
        server.admin_database.close()
    assert events[:2] == [
        ("build", "allowed", None),
        ("open_door", "failed", "the connection was closed before the end"),
    ]


@pytest.mark.anyio
async def test_the_lifespan_of_a_catalogue_surrounds_its_calls(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, doors: Doors
) -> None:
    async with running_resource_server(tmp_path / "a", resourceserver_template, clock, doors.catalogue) as server:
        assert doors.lives == ["begun"]
        initialize = {
            "jsonrpc": "2.0",
            "id": 1,
            "method": "initialize",
            "params": {
                "protocolVersion": "2025-11-25",
                "capabilities": {},
                "clientInfo": {"name": "test", "version": "1"},
            },
        }
        told = (await server.post(initialize, server.issuer.token("door:see"))).json()["result"]
        assert (told["serverInfo"]["name"], told["instructions"]) == ("Doors", "Knock first.")
    assert doors.lives == ["begun", "ended"]
