"""Fixtures of the authorization server's tests."""

from pathlib import Path

import pytest
from support.authserver import RESOURCE
from support.databases import Template
from support.shell import Shell


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    """A folder where nothing was initialized."""
    return Shell(tmp_path)


@pytest.fixture
def shell(tmp_path: Path, authserver_template: Template) -> Shell:
    """An initialized installation with one resource."""
    shell = Shell(tmp_path, authserver_template.install(tmp_path))
    scopes = ("--scope", "env:read=See environments", "--scope", "env:write", "--scope", "org:read")
    shell.text("resource", "add", RESOURCE, "--name", "tools", *scopes)
    return shell
