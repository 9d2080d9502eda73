"""Files with secrets: written completely or not at all, and read only if nobody else can access them."""

import os
from pathlib import Path

import pytest

from gatehouse.shared.service.files import UnsafeFile, new_file, read_private_file


def test_a_file_is_created_complete_and_private(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with new_file(path) as file:
        file.write(b"all of it")
        assert not path.exists()
    assert path.read_bytes() == b"all of it"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_an_incomplete_file_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_file(tmp_path / "file") as file:
        file.write(b"half")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_not_replaced(tmp_path: Path) -> None:
    path = tmp_path / "file"

    def write() -> None:
        with new_file(path) as file:
            path.write_text("another's, made meanwhile")
            file.write(b"ours")

    with pytest.raises(FileExistsError):
        write()
    assert path.read_text() == "another's, made meanwhile"
    assert list(tmp_path.iterdir()) == [path]


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    folder = tmp_path / "it's private"
    folder.mkdir(mode=0o700)
    with new_file(folder / "secret") as file:
        file.write(b"a secret")
    return folder / "secret"


def test_a_private_file_is_read_up_to_the_limit(secret: Path) -> None:
    assert read_private_file(secret, "test file", limit=100) == b"a secret"
    assert read_private_file(secret, "test file", limit=3) == b"a s"
    assert read_private_file(secret, "test file", limit=100, private_folder=True) == b"a secret"
    with pytest.raises(FileNotFoundError):
        read_private_file(secret.with_name("none"), "test file", limit=100)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_access_is_not_read(secret: Path, mode: int) -> None:
    assert read_private_file(secret, "test file", limit=100)
    secret.chmod(mode)
    with pytest.raises(UnsafeFile, match=r"The test file .* is accessible to others. Run: chmod 600 '"):
        read_private_file(secret, "test file", limit=100)


def test_a_file_that_others_can_replace_is_not_read(secret: Path) -> None:
    secret.parent.chmod(0o777)
    assert read_private_file(secret, "test file", limit=100)
    with pytest.raises(UnsafeFile, match=r"Others can replace the test file .* Run: chmod go-w '"):
        read_private_file(secret, "test file", limit=100, private_folder=True)


def test_a_symbolic_link_is_not_followed(secret: Path) -> None:
    link = secret.with_name("link")
    link.symlink_to(secret)
    with pytest.raises(UnsafeFile, match="is a link"):
        read_private_file(link, "test file", limit=100)


def test_only_a_regular_file_is_read(secret: Path) -> None:
    pipe = secret.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    for path in (pipe, secret.parent):
        with pytest.raises(UnsafeFile, match="not a regular file that you own"):
            read_private_file(path, "test file", limit=100)
