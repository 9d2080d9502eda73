"""SIGKILL at any point of a change of keys, secrets or the schema: nothing is lost or done twice."""

from pathlib import Path

import pytest
from sqlalchemy import URL
from support.audit import verification
from support.kills import OPERATIONS, killed_installation

from gatehouse.authserver.db.models import audit_tables
from gatehouse.shared.service.audit.keys import AuditKeys

pytestmark = [pytest.mark.kill, pytest.mark.both_databases]

KILLS = 25
"""For each operation on each database: 200 in all."""


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nothing_is_lost_when_a_process_is_killed(operation: str, tmp_path: Path, empty_database: URL) -> None:
    killed = killed_installation(tmp_path, empty_database)
    OPERATIONS[operation](killed, KILLS)
    with killed.services() as services:
        keys = AuditKeys.read(services.settings.audit_keys)
        assert verification(services.database.engine, audit_tables, keys).finding is None
    backend = empty_database.get_backend_name()
    print(f"\n{operation} on {backend}: {killed.tally} (seed {killed.seed})")
    assert killed.tally.kills == KILLS
    assert killed.tally.in_transaction >= 10
