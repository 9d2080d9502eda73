"""Reads a policy file, which decides who may call what, and which program runs."""

import os
import shlex
import stat
from pathlib import Path

from gatehouse.resourceserver.catalogue.policy_file import (
    MAX_LENGTH,
    InvalidPolicy,
    PolicyFile,
    check_length,
    parse_policy,
)


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
        # A named pipe would stop the process until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _check_file(path, os.fstat(descriptor).st_mode)
            text = os.read(descriptor, MAX_LENGTH + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidPolicy(f"the file cannot be read: {error.strerror}") from None
    check_length(len(text))
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise InvalidPolicy("the file is not UTF-8") from None


def _check_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InvalidPolicy("the file is not a regular file")
    if mode & stat.S_IWOTH:
        raise InvalidPolicy(f"every user can change the file; run: {shlex.join(['chmod', 'o-w', str(path)])}")
