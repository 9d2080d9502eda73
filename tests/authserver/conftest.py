"""Fixtures of the authorization server's tests."""

import shutil
from pathlib import Path

import pytest
from support.shell import RESOURCE, Shell


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    """A folder where nothing was initialized."""
    return Shell(tmp_path)


@pytest.fixture
def shell(tmp_path: Path, authserver_template: Path) -> Shell:
    """An initialized installation with one resource."""
    shell = Shell(tmp_path)
    shell.database.parent.mkdir()
    shutil.copy(authserver_template / "authserver.db", shell.database)
    shutil.copytree(authserver_template / "keys", tmp_path / "keys")
    scopes = ("--scope", "env:read=See environments", "--scope", "env:write", "--scope", "org:read")
    shell.text("resource", "add", RESOURCE, "--name", "tools", *scopes)
    return shell
