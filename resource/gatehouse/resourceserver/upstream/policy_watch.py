"""The accepted policy of a server: its master process reads the file whenever it changes, and its workers follow.

A file that is not valid changes nothing, and the log says why. The workers read only what the master has accepted, so a
worker that starts later has the same policy as the others, whatever the file contains by then.
"""

import hashlib
import logging
import mmap
import os
import shlex
import stat
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy, PolicyFile, parse_policy

MAX_LENGTH: Final = 1024 * 1024
"""Bytes of a policy file."""

_HEADER: Final = struct.Struct("<QQ32s")
"""Number of the version, length of the text, its SHA-256 digest."""

log = logging.getLogger(__name__)


class Accepted(NamedTuple):
    """A policy that the server enforces."""

    version: int
    """Grows with each policy that is accepted."""
    policy: PolicyFile


class PolicyWatch:
    """Reads the policy file in the master process, and shares the accepted text with the workers."""

    def __init__(self, path: Path, check: Callable[[PolicyFile], None]) -> None:
        """Read the file. Create this before the workers are forked.

        Args:
            path: the policy file.
            check: raises InvalidPolicy for a valid file that this server cannot serve.

        Raises:
            InvalidPolicy: the file cannot be read, is not valid, or cannot be served.
        """
        self._path = path
        self._check = check
        self._memory = mmap.mmap(-1, _HEADER.size + MAX_LENGTH)
        self._seen: tuple[int, ...] = ()
        self._pending: tuple[int, ...] | None = None
        text = read_policy_text(path)
        self.accepted = Accepted(1, self._read(text))
        """The last policy that this process knows."""
        self._seen = _state(path)
        self._publish(1, text)

    def supervise(self) -> None:
        """Read the file again if it has changed, and is complete: it has not changed since the last call.

        The master process calls this once a second.
        """
        state = _state(self._path)
        if state == self._seen:
            self._pending = None
            return
        if state != self._pending:
            self._pending = state
            return
        self._seen, self._pending = state, None
        try:
            text = read_policy_text(self._path)
            policy = self._read(text)
        except InvalidPolicy as error:
            log.error("the policy file has changed, and cannot be used; the previous policy stays in force: %s", error)
            return
        self.accepted = Accepted(self.accepted.version + 1, policy)
        self._publish(self.accepted.version, text)
        log.info("the policy file has changed, and version %d is in force", self.accepted.version)

    def stop(self) -> None:
        """Do nothing: the memory ends with the last process that has it."""

    def newest(self) -> Accepted:
        """Return the policy to enforce, in a worker."""
        version, length, digest = _HEADER.unpack_from(self._memory)
        if version == self.accepted.version:
            return self.accepted
        text = self._memory[_HEADER.size : _HEADER.size + length]
        # While the master writes, a worker may read a part of it. It reads the whole a second later.
        if hashlib.sha256(text).digest() == digest:
            self.accepted = Accepted(version, parse_policy(text.decode(), self._path.parent))
        return self.accepted

    def _read(self, text: bytes) -> PolicyFile:
        policy = _parse(self._path, text)
        self._check(policy)
        return policy

    def _publish(self, version: int, text: bytes) -> None:
        self._memory[_HEADER.size : _HEADER.size + len(text)] = text
        _HEADER.pack_into(self._memory, 0, version, len(text), hashlib.sha256(text).digest())


def read_policy(path: Path) -> PolicyFile:
    """Read a policy file. Raises InvalidPolicy if it cannot be read or is not valid."""
    return _parse(path, read_policy_text(path))


def _parse(path: Path, text: bytes) -> PolicyFile:
    try:
        return parse_policy(text.decode(), path.parent)
    except UnicodeDecodeError:
        raise InvalidPolicy(f"{path} is not UTF-8.") from None


def read_policy_text(path: Path) -> bytes:
    """Return the content of a policy file, which decides who may call what, and which program runs.

    Raises:
        InvalidPolicy: it cannot be read, is too large or no regular file, or every user of the machine can change it.
    """
    try:
        # A named pipe would stop the master process until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            _check_file(path, os.fstat(descriptor).st_mode)
            text = os.read(descriptor, MAX_LENGTH + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InvalidPolicy(f"{path}: {error.strerror}.") from None
    if len(text) > MAX_LENGTH:
        raise InvalidPolicy(f"{path} is larger than {MAX_LENGTH // 1024} KiB.")
    return text


def _check_file(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise InvalidPolicy(f"{path} is not a regular file.")
    if mode & stat.S_IWOTH:
        raise InvalidPolicy(f"Every user can change {path}. Run: {shlex.join(['chmod', 'o-w', str(path)])}")


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with the content of a file, even if a link to it is replaced. Empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
