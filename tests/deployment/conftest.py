"""What is in deploy/, run with programs of the distribution. Run by `make test-deployment`."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of this folder."""
    for item in items:
        if "deployment" in item.path.parts:
            item.add_marker("deployment")
            item.add_marker("no_cover")
