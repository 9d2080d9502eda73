"""The accepted policy of a server: its master process reads the file whenever it changes, and its workers follow.

A file that is not valid changes nothing, and the log says why. The workers read only what the master has accepted, so a
worker that starts later has the same policy as the others, whatever the file contains by then.
"""

import hashlib
import logging
import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from gatehouse.resourceserver.catalogue.policy_file import MAX_LENGTH, InvalidPolicy, PolicyFile, parse_policy
from gatehouse.resourceserver.catalogue.policy_reading import read_policy_text

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
        # Before the file is read: a change during that is seen afterwards.
        self._seen = _state(path)
        self._pending: tuple[int, ...] | None = None
        text = read_policy_text(path)
        self.accepted = Accepted(1, self._parse(text))
        """The last policy that this process knows."""
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
            policy = self._parse(text)
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

    def _parse(self, text: str) -> PolicyFile:
        policy = parse_policy(text, self._path.parent)
        self._check(policy)
        return policy

    def _publish(self, version: int, policy: str) -> None:
        text = policy.encode()
        self._memory[_HEADER.size : _HEADER.size + len(text)] = text
        _HEADER.pack_into(self._memory, 0, version, len(text), hashlib.sha256(text).digest())


def _state(path: Path) -> tuple[int, ...]:
    """Return what changes with the content of a file, even if a link to it is replaced. Empty without a file."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
