"""The configuration of gunicorn."""

from pathlib import Path

from gatehouse.shared.service.gunicorn import heartbeat_folder


def test_heartbeats_are_kept_in_memory_where_that_is_possible(tmp_path: Path) -> None:
    assert heartbeat_folder(str(tmp_path)) == str(tmp_path)
    assert heartbeat_folder(str(tmp_path / "none")) is None
