"""What the documents say of the code is so."""

import json
import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from gatehouse.authserver.cli import main as authserver_command
from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.bridge.credentials import BridgeSettings
from gatehouse.directory.catalogue import CATALOGUE
from gatehouse.resourceserver.cli import main as resourceserver_command
from gatehouse.resourceserver.settings import Settings as ResourceServerSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "examples").rglob("*.md")),
]


def test_the_readme_lists_every_setting_and_no_other() -> None:
    documented = set(
        re.findall(
            r"`((?:AUTHSERVER|RESOURCESERVER|BRIDGE)_[A-Z_]+)`", (ROOT / "README.md").read_text(encoding="utf-8")
        )
    )
    existing = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in (AuthServerSettings, ResourceServerSettings, BridgeSettings)
        for name in settings.model_fields
    }
    assert documented == existing


def test_the_readme_lists_every_tool_with_its_scope() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Tools")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in section.splitlines() if line.startswith("| ")][1:]
    shown = {
        tool: frozenset(re.findall("`(.+?)`", scope)) for scope, tools in rows for tool in re.findall("`(.+?)`", tools)
    }
    assert shown == {tool.name: tool.scopes for tool in CATALOGUE.tools.values()}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_link_between_documents_leads_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_test_that_a_document_names_exists(document: Path) -> None:
    named = set(re.findall(r"`(test_\w+)`", document.read_text(encoding="utf-8")))
    defined = {
        name
        for file in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", file.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert named - defined == set()


def test_every_departure_from_a_standard_is_held_by_a_test() -> None:
    document = (ROOT / "docs" / "divergences.md").read_text(encoding="utf-8")
    rows = [
        line for line in document.splitlines() if line.startswith("| ") and not line.endswith(("Test |", "Tests |"))
    ]
    assert len(rows) > 30
    assert [row for row in rows if "`test_" not in row.rsplit("|", 2)[1]] == []


def test_the_readme_shows_the_real_help() -> None:
    blocks = re.findall(
        r"```console\n\$ authserver ([^\n]*--help)\n(.*?)```",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.DOTALL,
    )
    assert len(blocks) == 5
    for arguments, shown in blocks:
        printed = CliRunner().invoke(authserver_command, arguments.split(), prog_name="authserver").output
        assert shown.rstrip() == "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


def test_every_command_of_what_now_can_be_typed() -> None:
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What now?")[2].partition("\n## ")[0]
    commands = re.findall(r"`(authserver|resourceserver) ([^`]*)`", section)
    assert len(commands) > 12
    for program, arguments in commands:
        words = re.match(r"[a-z -]*?(?= -|$| [A-Z<])", arguments)
        assert words, arguments
        group = authserver_command if program == "authserver" else resourceserver_command
        printed = CliRunner().invoke(group, [*words[0].split(), "--help"])
        assert printed.exit_code == 0, arguments
        assert f"{words[0]} [OPTIONS]" in printed.output, arguments
        assert all(option in printed.output for option in re.findall(r"--[a-z-]+", arguments)), arguments


def test_the_readme_shows_what_is_really_said_of_who_can_call_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the folder and with the names of the tour; only the client_ids are this test's own."""
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Who can call what")[2]
    section = section.partition("\n## ")[0]
    printed_ids = dict(re.findall(r"^(\S+) +(agent_[0-9a-f]{20}) ", section, re.MULTILINE))
    resource, run = "http://127.0.0.1:8000/mcp", CliRunner().invoke
    assert run(authserver_command, ["init"]).exit_code == 0
    Path("var/catalogue.json").write_text(run(resourceserver_command, ["tools", "--output", "json"]).stdout)
    add = ["resource", "add", resource, "--name", "directory", "--catalogue", "var/catalogue.json"]
    assert run(authserver_command, add).exit_code == 0
    for name, scope in {"ci-agent": "env:read", "key-agent": "env:read env:write", "org-agent": "org:write"}.items():
        create = ["client", "create", "--name", name, "--resource", resource, "--scope", scope, "--output", "json"]
        client_id = json.loads(run(authserver_command, create).stdout)["client_id"]
        section = section.replace(printed_ids.pop(name), client_id)
        if name == "key-agent":
            assert run(authserver_command, ["client", "disable", client_id]).exit_code == 0
    assert printed_ids == {}
    blocks = re.findall(r"```console\n\$ (.*?)\n(.*?)```", section, re.DOTALL)
    assert len(blocks) == 2
    for command, shown in blocks:
        printed = run(authserver_command, command.split()[1:]).output
        assert shown.rstrip() == "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == set(phony[1].split())
