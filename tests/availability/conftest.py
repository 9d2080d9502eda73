"""Real servers that clients try to occupy, or that are stopped under load. Run by `make test-availability`."""

from collections.abc import Iterator
from importlib.machinery import PathFinder
from pathlib import Path

import pytest
from local_stack import LocalStack
from support.availability import FAST_PARSER, Stack


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if "availability" in item.path.parts:
            item.add_marker("availability")
            item.add_marker("no_cover")


@pytest.fixture(params=["python", "fast"])
def parser(request: pytest.FixtureRequest) -> str:
    """The name of one of gunicorn's parsers."""
    if request.param == "fast":
        if not FAST_PARSER:
            pytest.skip("FAST_PARSER names no folder with gunicorn_h1c; run make test-availability")
        # Without it, gunicorn would use the other parser and say nothing.
        assert PathFinder.find_spec("gunicorn_h1c", [FAST_PARSER]), f"{FAST_PARSER} holds no gunicorn_h1c"
    name: str = request.param
    return name


@pytest.fixture
def stack(tmp_path: Path, parser: str) -> Iterator[Stack]:
    """Running servers whose workers use that parser."""
    servers = LocalStack(tmp_path / "stack", settings={"PYTHONPATH": FAST_PARSER if parser == "fast" else ""})
    prepared = Stack(servers)
    try:
        servers.start_all()
        yield prepared
    finally:
        servers.stop()
