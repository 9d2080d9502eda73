"""What the documents say of the code is so."""

import re
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from gatehouse.authserver.cli import main as authserver_command
from gatehouse.authserver.settings import Settings as AuthServerSettings
from gatehouse.resource.settings import Settings as ResourceServerSettings

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_the_readme_lists_every_setting_and_no_other() -> None:
    documented = set(
        re.findall(r"`((?:AUTH|RESOURCE)SERVER_[A-Z_]+)`", (ROOT / "README.md").read_text(encoding="utf-8"))
    )
    existing = {
        f"{settings.model_config['env_prefix']}{name.upper()}"
        for settings in (AuthServerSettings, ResourceServerSettings)
        for name in settings.model_fields
    }
    assert documented == existing


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
        r"```console\n\$ authserver (.*?--help)\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(blocks) == 5
    for arguments, shown in blocks:
        printed = CliRunner().invoke(authserver_command, arguments.split(), prog_name="authserver").output
        assert shown.rstrip() == "\n".join(line.rstrip() for line in printed.rstrip().splitlines())


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    phony = re.search(r"^\.PHONY: (.*)$", makefile, flags=re.MULTILINE)
    assert phony is not None
    listed = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == set(phony[1].split())
