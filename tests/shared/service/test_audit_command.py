"""The `audit` command of both servers."""

import json
from pathlib import Path

import pytest
from support.databases import engine_with_tables

from gatehouse.shared.service.audit import AuditEvent, audit_table
from gatehouse.shared.service.audit_command import print_audit
from gatehouse.shared.service.audit_rows import AuditRows
from gatehouse.shared.service.database import new_metadata, parse_database_url


def test_audit_rows_are_printed_without_internal_columns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metadata = new_metadata()
    table = audit_table(metadata)
    url = parse_database_url(f"sqlite:///{tmp_path}/audit.db")
    with engine_with_tables(url, metadata) as engine, engine.begin() as connection:
        connection.execute(AuditRows(table, lambda: 1_800_000_000.123).insert(AuditEvent("tool.call", "refused")))
        # An action of an earlier version can be filtered as long as the log has such an event.
        print_audit(connection, table, output="json", actions=("now.known",), action="tool.call", limit=5)
    [record] = json.loads(capsys.readouterr().out)
    assert record.pop("time") == "2027-01-15T08:00:00.123Z"
    assert record["action"] == "tool.call"
    assert record.keys().isdisjoint({"id", "writer", "sequence", "previous"})
