"""Fixtures of the authorization server's tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.authserver import RESOURCE, AuthServer, initialize
from support.databases import Templates
from support.document_server import DocumentServer
from support.issuers import Node, nodes, serving
from support.shell import Shell

from gatehouse.authserver.workloads.key_renewal import KeyRenewal


@pytest.fixture
def empty(tmp_path: Path) -> Shell:
    """A folder without an installation."""
    return Shell(tmp_path)


@pytest.fixture
def shell(tmp_path: Path, templates: Templates, backend: str) -> Iterator[Shell]:
    """An initialized installation with one resource."""
    template = templates.get(backend, "shell", prepare_shell)
    yield Shell(tmp_path, template.install(tmp_path))
    template.discard()


def prepare_shell(folder: Path, database_url: str) -> None:
    initialize(folder, database_url)
    scopes = ("--scope", "env:read=See environments", "--scope", "env:write", "--scope", "org:read")
    Shell(folder, database_url).text("resource", "add", RESOURCE, "--name", "tools", *scopes)


@pytest.fixture
def documents() -> Iterator[DocumentServer]:
    """What serves the keys of issuers."""
    with serving() as server:
        yield server


@pytest.fixture
def node(authserver: AuthServer) -> Iterator[Node]:
    """A node that fetches the keys of issuers."""
    with nodes(authserver, 1) as [one]:
        yield one


@pytest.fixture
def renewal(node: Node) -> KeyRenewal:
    """What fetches and stores them there."""
    return node.renewal
