"""Both servers as real gunicorn processes with two workers each."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.prepared_stack import PreparedStack, StackTemplate, initialized, running


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if "journeys" in item.path.parts:
            item.add_marker("journey")


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PreparedStack]:
    """A running installation shared by journeys; no journey stops it."""
    with running(tmp_path_factory.mktemp("stack") / "stack") as stack:
        yield stack


@pytest.fixture(scope="session")
def stack_template(tmp_path_factory: pytest.TempPathFactory) -> StackTemplate:
    return StackTemplate(initialized(tmp_path_factory.mktemp("stack") / "stack"))


@pytest.fixture
def lone_stack(stack_template: StackTemplate, tmp_path: Path) -> Iterator[PreparedStack]:
    """An installation whose servers the journey itself starts and kills."""
    prepared = stack_template.copy(tmp_path / "lone-stack")
    try:
        yield prepared
    finally:
        prepared.stop()


@pytest.fixture(scope="session")
def workspace_id(stack: PreparedStack) -> str:
    created: str = stack.run_json("resourceserver", "workspace", "create", "--name", "journeys")["workspace_id"]
    return created
