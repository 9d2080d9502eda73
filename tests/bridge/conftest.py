"""Fixtures of the bridge's tests."""

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def token_file(tmp_path: Path) -> Callable[[str | bytes], Path]:
    """What writes a file and returns its path. The mode is 0644, as that of kubelet's files."""

    def write(content: str | bytes) -> Path:
        path = tmp_path / "token"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        path.chmod(0o644)
        return path

    return write
