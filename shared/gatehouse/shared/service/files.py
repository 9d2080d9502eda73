"""Files that appear complete, on disk, for their owner only, and never in the place of another."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def new_file(path: Path, *, prefix: str = ".unfinished-") -> Iterator[BinaryIO]:
    """Write a file, mode 0600. It has its name when the block ends, and is gone when the block raises.

    Until then it has another name in the same folder, which begins with `prefix`.

    Raises:
        FileExistsError: there is something of that name.
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
    """Have the names in a folder on disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
