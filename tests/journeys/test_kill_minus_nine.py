"""A few of the kills of `make test-kill`, on SQLite."""

from pathlib import Path

import pytest
from sqlalchemy import URL
from support.kills import OPERATIONS, killed_installation


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_killed_process_leaves_a_consistent_state(operation: str, tmp_path: Path, empty_database: URL) -> None:
    killed = killed_installation(tmp_path, empty_database)
    OPERATIONS[operation](killed, 3)
    assert killed.tally.kills == 3
    assert killed.tally.in_transaction >= 1
