"""Private files: written completely or not at all, and secrets read only if nobody else can access them."""

import os
import socket
import stat
from contextlib import nullcontext
from pathlib import Path

import pytest

from gatehouse.shared.service.files import (
    FileChanged,
    UnsafeFile,
    edit_file,
    is_exposed,
    new_file,
    read_private_file,
    replace_file,
    secret_text,
)


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


def test_a_folder_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError):
        replace_file(tmp_path, b"content")
    assert list(tmp_path.parent.glob(".unfinished-*")) == []


def test_a_file_is_replaced_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    for document in (b"first", b"second"):
        replace_file(path, document)
        assert path.read_bytes() == document
        assert path.stat().st_mode & 0o777 == 0o600
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(os, "fchown", lambda _, *owner: given.append(owner))
    replace_file(path, b"second")
    assert given == [(tmp_path.stat().st_uid, tmp_path.stat().st_gid)]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    replace_file(path, b"second")
    assert len(given) == 1
    monkeypatch.setattr(os, "fsync", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        replace_file(path, b"third")
    assert path.read_bytes() == b"second"
    assert list(tmp_path.iterdir()) == [path]


def test_an_edited_file_keeps_its_mode_and_its_owner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, link = tmp_path / "file", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o640)
    link.symlink_to(path)
    given: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "fchown", lambda _, *owner: given.append(owner))
    edit_file(link, b"old", b"new")
    assert (path.read_bytes(), link.is_symlink()) == (b"new", True)
    assert path.stat().st_mode & 0o777 == 0o640
    assert given == [(path.stat().st_uid, path.stat().st_gid)]
    assert set(tmp_path.iterdir()) == {path, link}


def test_a_file_with_another_content_is_not_edited(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"changed")
    with pytest.raises(FileChanged, match=r"file\Z"):
        edit_file(path, b"old", b"new")
    with pytest.raises(FileNotFoundError):
        edit_file(tmp_path / "none", b"old", b"new")
    assert path.read_bytes() == b"changed"


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


@pytest.mark.parametrize("mode", [0o604, 0o620, 0o660, 0o601])
def test_a_file_that_others_can_access_is_not_read(secret: Path, mode: int) -> None:
    assert read_private_file(secret, "test file", limit=100)
    secret.chmod(mode)
    with pytest.raises(UnsafeFile, match=r"The test file .* is accessible to others. Run: chmod 600 '.*; or mount it"):
        read_private_file(secret, "test file", limit=100)


@pytest.mark.parametrize(
    ("owner", "mode", "exposed"),
    [
        *((0, mode, False) for mode in (0o400, 0o600, 0o440, 0o640)),
        *((0, mode, True) for mode in (0o444, 0o644, 0o660, 0o620, 0o650, 0o601)),
        *((1000, mode, False) for mode in (0o400, 0o600, 0o700)),
        *((1000, mode, True) for mode in (0o440, 0o640, 0o620, 0o604, 0o610)),
    ],
)
def test_only_a_group_may_read_and_only_a_file_of_root(owner: int, mode: int, exposed: bool) -> None:
    """PostgreSQL 18, section 18.9: "the file must have no more than 0640 permissions" if root owns it."""
    status = os.stat_result((stat.S_IFREG | mode, 0, 0, 1, owner, 0, 0, 0, 0, 0))
    assert is_exposed(status) is exposed


@pytest.mark.parametrize(("mode", "replaceable"), [(0o777, True), (0o1777, False), (0o770, True), (0o750, False)])
def test_a_file_that_others_can_replace_is_not_read(secret: Path, mode: int, replaceable: bool) -> None:
    secret.parent.chmod(mode)
    assert read_private_file(secret, "test file", limit=100)
    expected = pytest.raises(UnsafeFile, match=r"Others can replace the test file .* Run: chmod go-w '")
    with expected if replaceable else nullcontext():
        read_private_file(secret, "test file", limit=100, private_folder=True)


@pytest.fixture
def mounted(secret: Path) -> Path:
    """The file as Kubernetes mounts it: `secret -> ..data/secret`, `..data -> ..2026`."""
    version = secret.parent / "..2026"
    version.mkdir(mode=0o755)
    secret.rename(version / "secret")
    (secret.parent / "..data").symlink_to("..2026")
    secret.symlink_to("..data/secret")
    return secret


def test_a_link_within_its_folder_is_followed(mounted: Path) -> None:
    assert read_private_file(mounted, "test file", limit=100, private_folder=True) == b"a secret"
    through_a_link = mounted.parent.with_name("linked")
    through_a_link.symlink_to(mounted.parent)
    assert read_private_file(through_a_link / "secret", "test file", limit=100) == b"a secret"


def test_a_link_through_a_folder_that_others_can_change_is_refused(mounted: Path) -> None:
    (mounted.parent / "..2026").chmod(0o777)
    with pytest.raises(UnsafeFile, match=r"Others can replace .*\.\.2026'"):
        read_private_file(mounted, "test file", limit=100, private_folder=True)


def test_a_link_out_of_its_folder_is_not_followed(secret: Path) -> None:
    link = secret.parent.with_name("link")
    link.symlink_to(secret)
    outside = secret.with_name("link")
    outside.symlink_to("../secret of another")
    (secret.parent.with_name("secret of another")).write_bytes(b"another secret")
    assert read_private_file(link, "test file", limit=100) == b"a secret"
    with pytest.raises(UnsafeFile, match="is a link out of its folder"):
        read_private_file(outside, "test file", limit=100)


def test_a_link_to_itself_or_to_nothing_is_not_read(secret: Path) -> None:
    loop, dangling = secret.with_name("loop"), secret.with_name("dangling")
    loop.symlink_to("loop")
    dangling.symlink_to("none")
    with pytest.raises(UnsafeFile, match="link to itself"):
        read_private_file(loop, "test file", limit=100)
    with pytest.raises(FileNotFoundError):
        read_private_file(dangling, "test file", limit=100)


@pytest.mark.parametrize(
    ("document", "text"),
    [
        (b"secret\n", "secret"),
        (b"  secret\r\n", "secret"),
        (b"\xef\xbb\xbfsecret\n", "secret"),
        ("\ufeffsecret\r\n".encode("utf-16-le"), "secret"),
        ("\ufeffsecret".encode("utf-16-be"), "secret"),
        (b"-----BEGIN X-----\\nAA\\n-----END X-----\\n", "-----BEGIN X-----\nAA\n-----END X-----\n"),
        (b"not\\na PEM", "not\\na PEM"),
        (b"\xff", "\ufffd"),
    ],
)
def test_a_secret_has_no_marks_of_editors_and_mounts(document: bytes, text: str) -> None:
    assert secret_text(document) == text


def test_only_a_regular_file_is_read(secret: Path) -> None:
    pipe = secret.with_name("pipe")
    os.mkfifo(pipe, 0o600)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(secret.with_name("socket")))
    with pytest.raises(UnsafeFile, match="cannot be read"):
        read_private_file(secret.with_name("socket"), "test file", limit=100)
    for path in (pipe, secret.parent):
        with pytest.raises(UnsafeFile, match="not a regular file that you own"):
            read_private_file(path, "test file", limit=100)
