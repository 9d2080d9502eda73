"""Which modules the commands import: each one adds to the start time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.databases import Template

HEAVY = frozenset(
    {"alembic", "anyio", "flask", "gunicorn", "httpx2", "mako", "mcp", "psycopg", "rich", "starlette", "structlog"}
)
"""Packages that no simple command needs."""

RUN = """
import json, sys
from gatehouse.{program}.cli import main
main({arguments!r}, standalone_mode=False)
print(json.dumps(sorted({{name.partition(".")[0] for name in sys.modules}})), file=sys.stderr)
"""


def imported_by(program: str, *arguments: str, **environment: str) -> set[str]:
    """Return the top-level names of all modules that a command imports, in a separate process."""
    code = RUN.format(program=program, arguments=arguments)
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, check=True)
    return set(json.loads(run.stderr))


@pytest.mark.parametrize(
    ("program", "option"), [("authserver", "--version"), ("authserver", "--help"), ("resourceserver", "--version")]
)
def test_version_and_help_import_only_click(program: str, option: str) -> None:
    imported = imported_by(program, option)
    assert "click" in imported
    assert imported.isdisjoint({*HEAVY, "cryptography", "joserfc", "pydantic", "sqlalchemy"})


def test_a_list_imports_no_more_than_it_needs(authserver_template: Template, tmp_path: Path) -> None:
    url = authserver_template.install(tmp_path)
    options = {"AUTHSERVER_DATABASE_URL": url, "AUTHSERVER_KEYS_DIR": str(tmp_path / "keys")}
    imported = imported_by("authserver", "client", "list", "--output", "json", **options)
    assert "sqlalchemy" in imported
    assert imported.isdisjoint(HEAVY)


def test_the_gateways_commands_do_not_import_the_sdk() -> None:
    imported = imported_by("resourceserver", "tools", "--output", "json")
    assert "mcp_types" in imported
    assert imported.isdisjoint({"flask", "gunicorn", "httpx2", "mcp", "starlette"})
