"""Files with secrets: written completely and for their owner only, and read only if nobody else can access them."""

import os
import shlex
import stat
import tempfile
from collections.abc import Iterator
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


def flush_folder(folder: Path) -> None:
    """Flush the directory entries of a folder to disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class UnsafeFile(Exception):
    """A file with a secret cannot be trusted. The message names the file and says how to fix it."""


def read_private_file(path: Path, name: str, *, limit: int, private_folder: bool = False) -> bytes:
    """Read at most `limit` bytes of a file that only its owner can access.

    `name` says in messages what the file is, such as "sealing key". With `private_folder`, its folder must not be
    writable for others either, who could replace the file.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFile: it is a link or not a regular file, is unreadable, belongs to another user than this one or root,
            or others can access it.
    """
    try:
        # O_NOFOLLOW: a link could lead to a file that somebody else controls.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise
    except OSError:
        raise UnsafeFile(
            f"The {name} {path} cannot be read, or is a link. Replace it with a regular file that you own."
        ) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_uid not in {0, os.geteuid()}:
            raise UnsafeFile(f"The {name} {path} is not a regular file that you own. Replace it with one that is.")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise UnsafeFile(f"The {name} {path} is accessible to others. Run: {_command('chmod', '600', path)}")
        if private_folder and path.parent.stat().st_mode & 0o022:
            raise UnsafeFile(f"Others can replace the {name} {path}. Run: {_command('chmod', 'go-w', path.parent)}")
        return os.read(descriptor, limit)
    finally:
        os.close(descriptor)


def _command(*arguments: str | Path) -> str:
    return shlex.join(map(str, arguments))
