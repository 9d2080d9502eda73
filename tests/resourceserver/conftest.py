"""A policy of an upstream in every stage, for the tests of the `policy` commands."""

from pathlib import Path

import pytest
from support.policies import Policies


@pytest.fixture
def policies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Policies:
    return Policies(tmp_path, monkeypatch)


@pytest.fixture
def drafted(policies: Policies) -> Policies:
    policies.draft()
    return policies


@pytest.fixture
def confirmed(drafted: Policies) -> Policies:
    drafted.confirm("--all", "--yes")
    assert drafted.differences() == {}
    return drafted
