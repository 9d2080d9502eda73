"""Files that are written completely or not at all, and secrets that are read only if nobody else can access them."""

import codecs
import fcntl
import os
import shlex
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path, *, prefix: str = ".unfinished-") -> Iterator[BinaryIO]:
    """Write a file, mode 0600. It gets its name when the block ends, and is removed if the block raises.

    Until then it has a temporary name in the same folder, which begins with `prefix`.

    Raises:
        FileExistsError: the path exists already.
        OSError: the folder cannot be written to.
    """
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=prefix)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        # A link either makes the complete file appear under its name or fails because one is there.
        os.link(temporary, path)
        flush_folder(path.parent)
    finally:
        Path(temporary).unlink()


def create_file(path: Path, document: bytes, *, prefix: str) -> bool:
    """Write a file, mode 0600, in a folder that is created if needed, unless the file exists.

    Return whether it was written. If two processes do this at once, the file of one remains. `prefix` is as in
    `new_file`.

    Raises:
        OSError: the folder cannot be created or written to.
    """
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with new_file(path, prefix=prefix) as file:
            file.write(document)
    except FileExistsError:
        return False
    return True


def replace_file(path: Path, document: bytes) -> None:
    """Write a file, mode 0600, in place of the one at the path, if any. At any time, readers find one of the two.

    The file belongs to the owner of its folder, even if root writes it for a server that has a user of its own.

    Raises:
        OSError: the folder cannot be written to.
    """
    owner = path.parent.stat()

    def own(descriptor: int) -> None:
        if os.geteuid() == 0:
            os.fchown(descriptor, owner.st_uid, owner.st_gid)

    _replace(path, document, own)


class FileChanged(Exception):
    """Another program has changed a file since it was read. The text is the path."""


def edit_file(path: Path, old: bytes, new: bytes) -> None:
    """Replace the content of a file, which keeps its owner and its mode. At any time, readers find one of the two.

    Of a link, the target is replaced.

    Raises:
        FileChanged: the content is no longer `old`.
        OSError: the folder cannot be written to, or the file cannot keep its owner.
    """
    target = path.resolve(strict=True)
    # Two programs that edit by this function do not overwrite each other's change.
    with locked_folder(target.parent):
        status = target.stat()
        if target.read_bytes() != old:
            raise FileChanged(str(path))

        def keep(descriptor: int) -> None:
            os.fchown(descriptor, status.st_uid, status.st_gid)
            os.fchmod(descriptor, stat.S_IMODE(status.st_mode))

        _replace(target, new, keep)


def _replace(path: Path, document: bytes, prepare: Callable[[int], None]) -> None:
    """Write a file in place of the one at the path. `prepare` gets its descriptor before it has the name."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".unfinished-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(document)
            file.flush()
            prepare(file.fileno())
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink()
        raise
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Lock a folder of secrets for the block, so that no other process replaces a file in it. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


class UnsafeFile(Exception):
    """A file with a secret cannot be trusted. The message names the file and says how to fix it."""


def read_private_file(path: Path, name: str, *, limit: int, private_folder: bool = False) -> bytes:
    """Read at most `limit` bytes of a file that nobody else can access, as PostgreSQL requires of a TLS key.

    The file belongs to this user and only it has access, or it belongs to root and at most its group may read it, as
    Kubernetes and systemd mount secrets. `path` may be a link within its folder: Kubernetes mounts
    `key -> ..data/key` and `..data -> ..2026_11_28`. `name` says in messages what the file is, such as "sealing key".
    With `private_folder`, nobody else may be able to replace the file in its folder.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFile: it is not a regular file, a link out of its folder, unreadable, belongs to another user, or others
            can access or replace it.
    """
    try:
        target = _target(path, name)
        # O_NOFOLLOW: the links have been followed, and the target cannot be one.
        descriptor = os.open(target, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError as error:
        reason = error.strerror or "input/output"
        raise UnsafeFile(f"The {name} {path} cannot be read ({reason}). Replace it with a regular file") from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in {0, os.geteuid()}:
            raise UnsafeFile(f"The {name} {path} is not a regular file that you own. Replace it with one that is")
        if is_exposed(status):
            raise UnsafeFile(
                f"The {name} {path} is accessible to others. Run: {_command('chmod', '600', path)}; or mount it with "
                "mode 0400 for this user, or with 0440 for root and a group of this user"
            )
        if private_folder:
            _require_private_folders(path, target, name)
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def read_private_text(path: Path, name: str, *, limit: int, private_folder: bool = False) -> str:
    """Read a file as `read_private_file` does, and return its text as `secret_text` does. Raises as that does."""
    return secret_text(read_private_file(path, name, limit=limit, private_folder=private_folder))


def secret_text(document: bytes) -> str:
    r"""Return the text of a secret without what editors and mounts add.

    That is a byte order mark (UTF-8 or UTF-16), white space at both ends, and in PEM the two characters `\n` for the
    end of a line. Bytes that are not text become U+FFFD.
    """
    encoding = "utf-16" if document.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    text = document.decode(encoding, "replace").strip()
    return text.replace("\\n", "\n") if text.startswith("-----BEGIN") else text


def is_exposed(status: os.stat_result) -> bool:
    """Tell whether anyone but its owner can access a file, except a group that may read root's file."""
    return bool(stat.S_IMODE(status.st_mode) & (0o037 if status.st_uid == 0 else 0o077))


def _target(path: Path, name: str) -> Path:
    """Follow the links of a path. Raises FileNotFoundError, and UnsafeFile if they lead out of its folder."""
    folder = path.parent.resolve()
    try:
        target = (folder / path.name).resolve(strict=True)
    except RuntimeError:
        raise UnsafeFile(f"The {name} {path} is a link to itself. Replace it with a regular file") from None
    if not target.is_relative_to(folder):
        # Somebody else may control the file there.
        raise UnsafeFile(f"The {name} {path} is a link out of its folder. Replace it with a regular file")
    return target


def _require_private_folders(path: Path, target: Path, name: str) -> None:
    """Refuse a file that others can replace, in the folder of the path or between it and the file."""
    top = path.parent.resolve()
    for folder in target.parents[: len(target.relative_to(top).parts)]:
        status = folder.stat()
        # In a sticky folder, only the owners of a file and of the folder can replace it.
        protected = status.st_mode & stat.S_ISVTX and status.st_uid in {0, os.geteuid()}
        if status.st_mode & 0o022 and not protected:
            raise UnsafeFile(f"Others can replace the {name} {path}. Run: {_command('chmod', 'go-w', folder)}")


def _command(*arguments: str | Path) -> str:
    return shlex.join(map(str, arguments))
