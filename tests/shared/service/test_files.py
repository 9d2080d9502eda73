"""Files that appear complete or not at all."""

from pathlib import Path

import pytest

from gatehouse.shared.service.files import new_file


def test_a_file_has_its_name_when_it_is_complete_and_only_its_owner_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with new_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_is_left_of_a_file_that_was_not_completed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_what_has_the_name_already_keeps_it(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with new_file(path) as file:
            path.write_text("another's, made meanwhile")
            file.write(b"ours")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_text() == "another's, made meanwhile"
    assert list(tmp_path.iterdir()) == [path]
