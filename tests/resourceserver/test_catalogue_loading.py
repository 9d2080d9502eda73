"""Loading a catalogue by the name of its module, and what stops every command."""

import importlib
import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gatehouse.resourceserver.cli import main

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
        pytest.param(
            ('scopes=["door:open"]', 'scopes=["door:open"], streaming=True'),
            r"mytools\.py:\d+: open_door has only one of streaming=True and a parameter of the type Progress",
            id="streaming without progress",
        ),
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
