"""Which modules the commands import: each one adds to the start time."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.databases import Template

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.token_cache import StoredToken, TokenCache, cache_key

HEAVY = frozenset(
    {"alembic", "anyio", "flask", "gunicorn", "httpx2", "mako", "mcp", "psycopg", "rich", "starlette", "structlog"}
)
"""Packages that no simple command needs."""

RUN = """
import json, sys
from gatehouse.{program}.cli import main
main({arguments!r}, standalone_mode=False)
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def imported_by(program: str, *arguments: str, **environment: str) -> set[str]:
    """Return the names of all modules that a command imports, in a separate process."""
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
    assert "sqlalchemy.dialects.sqlite" in imported
    assert imported.isdisjoint({*HEAVY, "sqlalchemy.dialects.postgresql"})


def test_listing_tools_does_not_import_the_sdk() -> None:
    imported = imported_by("resourceserver", "tools", "--output", "json")
    assert "mcp_types" in imported
    assert imported.isdisjoint({"flask", "gunicorn", "httpx2", "mcp", "starlette", "structlog"})


def test_the_check_of_the_gateway_does_not_import_the_sdk(tmp_path: Path) -> None:
    options = {
        "RESOURCESERVER_DATABASE_URL": f"sqlite:///{tmp_path}/resourceserver.db",
        "RESOURCESERVER_ISSUER": "http://127.0.0.1:9",
    }
    imported = imported_by("resourceserver", "check", "--output", "json", **options)
    assert "httpx2" in imported
    assert imported.isdisjoint({"flask", "gunicorn", "mcp", "starlette", "structlog"})


def test_the_bridge_does_not_import_what_only_servers_need() -> None:
    imported = imported_by("resourceserver", "bridge", "--help")
    assert "gatehouse.bridge.server" in imported
    assert imported.isdisjoint({"alembic", "flask", "gunicorn", "joserfc", "psycopg", "sqlalchemy"})


def test_a_token_that_was_kept_is_printed_without_the_sdk_and_an_http_client(tmp_path: Path) -> None:
    resource, secret = "http://127.0.0.1:1/mcp", "gths_0123456789abcdefghij"
    credentials = Credentials("agent_1", "", "client_secret_basic", secret=secret)
    key = cache_key(None, resource, "agent_1", "", credentials.digest())
    kept = StoredToken("a.b.c", "", time.time() + 300)
    TokenCache(tmp_path / "gatehouse" / "tokens", pytest.fail).put(key, kept)
    environment = {"BRIDGE_CLIENT_ID": "agent_1", "BRIDGE_CLIENT_SECRET": secret, "XDG_CACHE_HOME": str(tmp_path)}
    imported = imported_by("resourceserver", "token", resource, **environment)
    assert "gatehouse.bridge.token_cache" in imported
    assert imported.isdisjoint({*HEAVY, "joserfc", "sqlalchemy"})


def test_a_token_is_requested_without_the_sdk() -> None:
    code = "import sys, gatehouse.bridge.one_token; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "httpx2" in imported
    assert imported.isdisjoint({"alembic", "flask", "gunicorn", "joserfc", "mcp", "psycopg", "sqlalchemy"})


def test_the_process_that_serves_metrics_imports_no_part_of_a_server() -> None:
    code = "import sys, gatehouse.shared.service.metrics_server, prometheus_client.multiprocess; print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    imported = set(run.stdout.split())
    assert "prometheus_client" in imported
    assert imported.isdisjoint({*HEAVY, "cryptography", "pydantic", "sqlalchemy"})
