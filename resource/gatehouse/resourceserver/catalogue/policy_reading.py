"""Reads a policy file, which decides who may call what, and which program runs."""

import os
import shlex
import stat
from pathlib import Path
from typing import Final

from gatehouse.resourceserver.catalogue.policy_file import (
    MAX_LENGTH,
    InvalidPolicy,
    PolicyFile,
    check_length,
    parse_policy,
)

_NO_FILE: Final = "the file is not a regular file"


def read_policy(path: Path) -> PolicyFile:
    """Read and parse a policy file. Raises InvalidPolicy."""
    return parse_policy(read_policy_text(path), path.parent)


def read_policy_text(path: Path) -> str:
    """Return the content of a policy file, without parsing it.

    Raises:
        InvalidPolicy: it cannot be read, is too large, not UTF-8 or no regular file, or every user of the machine can
            change it.
    """
    try:
        # To its end: a part of a policy could be valid, and allow more.
        with open(path, "rb", opener=_open) as file:
            _check_file(path, os.fstat(file.fileno()).st_mode)
            text = file.read(MAX_LENGTH + 1)
    except IsADirectoryError:
        raise InvalidPolicy(_NO_FILE) from None
    except OSError as error:
        raise InvalidPolicy(f"the file cannot be read: {error.strerror}") from None
    check_length(len(text))
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InvalidPolicy("the file is not UTF-8") from None


def _open(path: str, flags: int) -> int:
    # A named pipe would stop the process until somebody writes to it.
    return os.open(path, flags | os.O_NONBLOCK)


def _check_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InvalidPolicy(_NO_FILE)
    if mode & stat.S_IWOTH:
        raise InvalidPolicy(f"every user can change the file; run: {shlex.join(['chmod', 'o-w', str(path)])}")
