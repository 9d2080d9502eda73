"""Real servers that clients try to occupy, or that are stopped under load. Run by `make test-availability`."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from local_stack import LocalStack
from support.availability import Stack
from support.limits import VARIABLES


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if "availability" in item.path.parts:
            item.add_marker("availability")


@pytest.fixture
def stack(tmp_path: Path) -> Iterator[Stack]:
    """Running servers."""
    servers = LocalStack(tmp_path / "stack", settings=VARIABLES)
    prepared = Stack(servers)
    try:
        servers.start_all()
        yield prepared
    finally:
        servers.stop()
