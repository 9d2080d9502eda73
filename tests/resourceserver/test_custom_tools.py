"""Catalogues that users write: how they are loaded, what stops the start, and how their tools run."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NewType, TypeVar

import anyio
import pytest
from click.testing import CliRunner, Result
from pydantic import BaseModel, RootModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import ResourceServer, running_resource_server
from typing_extensions import TypeAliasType

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.directory.environments import Environment, create_environment
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolFailed, ToolGroup
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.cli import main
from gatehouse.shared.protocol.claims import AccessClaims

SOUND = '''
from pydantic import BaseModel
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolGroup

tools = ToolGroup()

class Answer(BaseModel):
    text: str

@tools.tool(scopes=["door:open"])
async def open_door(name: str) -> Answer:
    """Open a door."""
    return Answer(text=name)

CATALOGUE = Catalogue("Doors", scopes=[Scope("door:open", "Open doors")], groups=[tools])
'''

GUARDED = """
from mcp.server.mcpserver import MCPServer
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue
server = MCPServer("Doors")
"""

Write = Callable[..., str]
Run = Callable[..., Result]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Write a module to the working directory and return its name. After the test, it is no longer imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])

    def write(source: str, name: str = "mytools") -> str:
        (tmp_path / f"{name}.py").write_text(source, encoding="utf-8")
        importlib.invalidate_caches()
        return name

    yield write
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def run(write: Write) -> Run:
    return lambda *arguments, **env: CliRunner().invoke(main, list(arguments), env=env)


# Loading


def test_a_catalogue_is_loaded_from_the_working_directory(run: Run, write: Write) -> None:
    module = write(SOUND)
    by_option = run("tools", "--tools", module, "--output", "json")
    by_setting = run("tools", "--output", "json", RESOURCESERVER_TOOLS=module)
    assert by_option.exit_code == 0, by_option.output
    assert by_option.stdout == by_setting.stdout
    assert [tool["name"] for tool in json.loads(by_option.stdout)["tools"]] == ["open_door"]
    won = run("tools", "--tools", "gatehouse.directory.catalogue", RESOURCESERVER_TOOLS=module)
    assert "whoami" in won.stdout
    assert "open_door" not in won.stdout


@pytest.mark.threat("T-058")
def test_a_file_in_the_working_directory_shadows_no_installed_module(run: Run, write: Write) -> None:
    write("raise RuntimeError('imported')", "gatehouse")
    write("raise RuntimeError('imported')", "click")
    result = run("tools", "--tools", write(f"import click\n{SOUND}"))
    assert result.exit_code == 0, result.output


@pytest.mark.threat("T-051")
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            ('scopes=["door:open"]', ""), r"mytools\.py:\d+: open_door has no scopes\. List them, or", id="no scopes"
        ),
        pytest.param(('["door:open"]', "[]"), r"mytools\.py:\d+: open_door has no scopes\. List", id="empty scopes"),
        pytest.param(
            ('scopes=["door:open"]', 'scopes=["door:opne"]'),
            r"mytools\.py:\d+: open_door needs the scope door:opne, which is not declared\. Declared scopes: door:open",
            id="unknown scope",
        ),
        pytest.param(
            ("name: str", "name"),
            r"mytools\.py:\d+: open_door has the argument name without a type\. Annotate it",
            id="untyped",
        ),
        pytest.param(
            ("groups=[tools]", "groups=[tools, tools]"),
            r"mytools\.py:\d+: open_door is already declared in mytools\.py:\d+\. Rename one",
            id="twice",
        ),
        pytest.param(("async def", "def"), r"mytools\.py:\d+: open_door is not async", id="blocking"),
        pytest.param(("CATALOGUE =", "CATALOG ="), r"mytools\.py has no CATALOGUE\. Write at its", id="no catalogue"),
        pytest.param(
            ("CATALOGUE = ", "CATALOGUE = tools;"), r"mytools\.py: CATALOGUE is of the type ToolGroup", id="a group"
        ),
        pytest.param(("text: str", "text: str\n    1 / 0"), r"mytools\.py:9: .*ZeroDivisionError", id="raises"),
        pytest.param(("tools = ToolGroup()", "tools = ToolGroup("), r"mytools\.py:5: .*SyntaxError", id="syntax"),
        pytest.param(("text: str", "text: str\n    raise SystemExit"), r"mytools\.py:9: .*SystemExit", id="exits"),
        pytest.param(
            ("from pydantic", "import json\njson.loads('{')\nfrom pydantic"),
            r"mytools\.py:3: .*JSONDecodeError",
            id="raises in a library",
        ),
        pytest.param(
            ("from pydantic", "import no_such_library\nfrom pydantic"),
            r"mytools\.py:2: .*No module named 'no_such_library'\. Install it for",
            id="missing library",
        ),
        pytest.param(
            ("from pydantic", "import json.nothing\nfrom pydantic"),
            r"mytools\.py:2: .*No module named 'json\.nothing'(?!.*Install)",
            id="missing part of a library",
        ),
        pytest.param(
            ('@tools.tool(scopes=["door:open"])', "@tools.tool"),
            r"mytools\.py:\d+: open_door has no scopes\. List them, or",
            id="no parentheses",
        ),
        pytest.param(
            ('scopes=["door:open"]', 'scopes="door:open"'),
            r'mytools\.py:\d+: open_door has a string as its scopes\. Write a list: \["door:open"\]',
            id="a text for scopes",
        ),
        pytest.param(
            ('Scope("door:open", "Open doors")', 'Scope("door:open", "Open", implies="door:see")'),
            r"mytools\.py:15: Scope\(.*\) is not a Scope\. Write: Scope\(.* implies=\(",
            id="a text for implied scopes",
        ),
        pytest.param(
            ('Scope("door:open", "Open doors")', '"door:open"'),
            r"mytools\.py:15: 'door:open' is not a Scope\. Write: Scope\(",
            id="a text for a scope",
        ),
        pytest.param(
            ('"Open doors")', '"Open doors", implies=("door:see",))'),
            r"mytools\.py:15: The scope door:open implies door:see, which is not declared",
            id="implied and unknown",
        ),
        pytest.param(
            ("CATALOGUE =", f"{GUARDED}CATALOGUE = server #"),
            r"mytools\.py: CATALOGUE is an MCPServer, .* guarded_catalogue\(",
            id="an unguarded server",
        ),
        pytest.param(
            ("CATALOGUE =", f"{GUARDED}CATALOGUE = guarded_catalogue(server, scopes={{'shut': ['a']}}, declared=[]) #"),
            r"mytools\.py:\d+: server Doors: the table names the tool shut",
            id="a wrong table",
        ),
        pytest.param(
            ('scopes=[Scope("door:open", "Open doors")], groups=[tools]', "scopes=[], groups=[]"),
            r"mytools\.py: CATALOGUE declares no scope",
            id="nothing declared",
        ),
    ],
)
@pytest.mark.parametrize("command", ["serve", "tools", "check"])
def test_an_invalid_catalogue_stops_every_command_with_file_and_fix(
    run: Run, write: Write, command: str, change: tuple[str, str], problem: str
) -> None:
    assert run("tools", "--tools", write(SOUND, "soundtools")).exit_code == 0
    assert change[0] in SOUND
    result = run(command, "--tools", write(SOUND.replace(*change)))
    assert result.exit_code == 1
    # A table may wrap a line at the width of the terminal.
    assert re.search(problem, result.output), result.output
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(("import BaseModel", "import NoSuchModel"), id="cannot be imported"),
        pytest.param(("text: str", "text: str\n    raise SystemExit"), id="exits"),
        pytest.param(("groups=[tools]", "groups=[tools, tools]"), id="an invalid catalogue"),
        pytest.param(("groups=[tools]", "groups=[tools], cli='no_such_module:command'"), id="a missing command"),
    ],
)
def test_help_is_printed_without_a_catalogue_that_cannot_be_loaded(
    run: Run, write: Write, change: tuple[str, str]
) -> None:
    module = write(SOUND.replace(*change))
    result = run("--help", RESOURCESERVER_TOOLS=module)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "  serve " in result.output
    unknown = run("workspace", RESOURCESERVER_TOOLS=module)
    assert unknown.exit_code == 1
    assert unknown.output.startswith("Error: ")


@pytest.mark.parametrize("part", ["cli", "migrations"])
def test_a_part_of_a_catalogue_that_cannot_be_imported_is_named(run: Run, write: Write, part: str) -> None:
    module = write(SOUND.replace("groups=[tools]", f"groups=[tools], {part}='no_such_module:PART'"))
    result = run("doors", RESOURCESERVER_TOOLS=module) if part == "cli" else run("init", "--tools", module)
    assert result.exit_code == 1
    what = "command" if part == "cli" else "migrations"
    assert f"the {what} of the catalogue Doors cannot be loaded: ModuleNotFoundError: " in result.output


def test_commands_print_no_log_lines_of_libraries(write: Write, tmp_path: Path) -> None:
    """MCPServer adds a log handler when it is made. In a process of its own: pytest has handlers of its own."""
    declared = "scopes={}, declared=[Scope('door:open', 'Open doors')]"
    module = write(f"{SOUND}\n{GUARDED}\nCATALOGUE = guarded_catalogue(server, {declared})\n")
    program = Path(sys.executable).with_name("resourceserver")
    done = subprocess.run(
        [program, "init", "--tools", module], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "http://127.0.0.1:8000/mcp" in done.stdout


@pytest.mark.parametrize("module", ["nowhere", "nowhere.deeper"])
def test_the_error_of_a_missing_module_says_where_it_is_looked_for(run: Run, write: Write, module: str) -> None:
    assert run("tools", "--tools", write(SOUND, "soundtools")).exit_code == 0
    result = run("tools", "--tools", module)
    assert result.exit_code == 1
    top = module.partition(".")[0]
    assert f"There is no module {module}. Run the command in the folder that {top} is in" in result.output
    assert "PYTHONPATH" in result.output


def test_a_misspelt_submodule_is_not_looked_for_elsewhere(run: Run, write: Write) -> None:
    assert run("tools", "--tools", write(SOUND, "soundtools")).exit_code == 0
    result = run("tools", "--tools", "soundtools.deeper")
    assert result.exit_code == 1
    assert "There is no module soundtools.deeper in " in result.output
    assert "soundtools.py. Check the spelling." in result.output
    assert "PYTHONPATH" not in result.output


@pytest.mark.parametrize("module", ["mytools.py", "folder/mytools", "", ".mytools", "my tools", "mytools\x1b[0m"])
def test_an_invalid_module_name_is_refused(run: Run, write: Write, module: str) -> None:
    assert run("tools", "--tools", write(SOUND)).exit_code == 0
    result = run("tools", "--tools", module)
    assert result.exit_code == 1
    assert "RESOURCESERVER_TOOLS=" in result.output
    assert ": must be the name of a module, such as mypackage.mytools" in result.output


# Declarations


class Answer(BaseModel):
    """The result of the tools."""

    text: str


class Words(RootModel[list[str]]):
    """A result that is not a JSON object."""


class Side(Enum):
    """Which way a door opens."""

    IN = "in"
    OUT = "out"


class Disguise(AccessClaims):
    """A kind of caller."""


async def optional(claims: AccessClaims | None = None) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def annotated(claims: Annotated[AccessClaims, "the caller"]) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def several(claims: list[AccessClaims]) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def derived(claims: Disguise) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


Caller = NewType("Caller", AccessClaims)
Renamed = TypeAliasType("Renamed", AccessClaims)
SomeCaller = TypeVar("SomeCaller", bound=AccessClaims)


class Envelope(BaseModel):
    """An argument with a caller in it."""

    inner: list[AccessClaims]


class Pair(NamedTuple):
    """Another one."""

    inner: AccessClaims


async def new_type(claims: Caller) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def alias(claims: Renamed) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def variable(claims: SomeCaller) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def enclosed(claims: Envelope) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def paired(claims: Pair) -> Answer:
    """Answer."""
    return Answer(text=str(claims))


async def plain(claims: AccessClaims) -> Answer:
    """Answer."""
    return Answer(text=claims.client_id)


DOORS = [Scope("door:open", "Open doors")]
SPELLINGS = [optional, annotated, several, derived, new_type, alias, variable, enclosed, paired]


@pytest.mark.threat("T-053")
@pytest.mark.parametrize("function", SPELLINGS, ids=lambda function: function.__name__)
def test_no_spelling_of_an_injected_type_becomes_an_argument(function: Any) -> None:
    """CWE-290, CWE-915: the caller could write another identity into the call."""
    group = ToolGroup()
    group.tool(scopes=["door:open"])(plain)
    assert Catalogue("test", DOORS, [group]).tools["plain"].input_schema["properties"] == {}
    group.tool(scopes=["door:open"])(function)
    with pytest.raises(InvalidCatalogue, match=rf"{function.__name__} has AccessClaims within .* Write claims: Access"):
        Catalogue("test", DOORS, [group])


class Unfinished(BaseModel):
    """A model with an undefined type."""

    other: "Nowhere"  # type: ignore[name-defined]  # noqa: F821


def test_a_type_that_pydantic_cannot_read_is_refused_with_the_tool() -> None:
    async def unfinished(thing: Unfinished) -> Answer:
        """Answer."""
        return Answer(text=str(thing))

    group = ToolGroup()
    group.tool(scopes=["door:open"])(unfinished)
    with pytest.raises(InvalidCatalogue, match="unfinished has the argument thing, whose type JSON cannot represent"):
        Catalogue("test", DOORS, [group])


def test_a_tool_returns_an_object_and_has_a_valid_name() -> None:
    async def words() -> Words:
        """Answer."""
        return Words(["a"])

    async def named() -> Answer:
        """Answer."""
        return Answer(text="")

    named.__name__ = "tür"
    for function, problem in (
        (words, "words does not return a JSON object"),
        (named, "'tür' is not a valid tool name"),
    ):
        group = ToolGroup()
        group.tool(scopes=["door:open"])(function)
        with pytest.raises(InvalidCatalogue, match=problem):
            Catalogue("test", DOORS, [group])


def test_a_tool_writes_unless_it_declares_that_it_only_reads() -> None:
    group = ToolGroup()
    group.tool(scopes=["door:open"])(plain)
    assert not group.declarations[0].read_only


# Serving


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
        async def build(directory: Directory, name: str) -> Environment:
            """Create an environment."""
            return await create_environment(directory, name)

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
