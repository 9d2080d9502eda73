"""Both servers as real gunicorn processes with two workers each."""

from collections.abc import Iterator

import pytest
from local_stack import LocalStack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test in this folder is a journey."""
    for item in items:
        if "journeys" in item.path.parts:
            item.add_marker("journey")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """A running installation that all journeys share; none of them stops it."""
    running = LocalStack(tmp_path_factory.mktemp("stack"))
    running.init()
    try:
        running.start_all()
        yield running
    finally:
        running.stop()


@pytest.fixture
def lone_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """An installation whose servers a journey starts and kills as it likes."""
    prepared = LocalStack(tmp_path_factory.mktemp("lone-stack"))
    prepared.init()
    try:
        yield prepared
    finally:
        prepared.stop()


@pytest.fixture(scope="session")
def workspace_id(stack: LocalStack) -> str:
    created: str = stack.run_json("resourceserver", "workspace", "create", "--name", "journeys")["workspace_id"]
    return created
