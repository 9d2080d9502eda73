"""The token that a platform issues to its workload, as it is read and sent."""

import errno
import os
import re
import stat
from pathlib import Path
from typing import Final

ASSERTION_TYPE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2. A JWT-SVID may have it, too."""

MAX_PLATFORM_TOKEN: Final = 16 * 1024
"""Bytes of a platform token."""

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)


def is_compact_jwt(text: str) -> bool:
    """Tell whether a text has the form of a signed JWT (RFC 7515 7.1). Nothing in it is read."""
    return len(text) <= MAX_PLATFORM_TOKEN and _COMPACT.fullmatch(text) is not None


def read_token_file(path: Path) -> bytes:
    """Read at most MAX_PLATFORM_TOKEN + 1 bytes of a regular file.

    Links are followed, and others may read the file: kubelet mounts `token -> ..data/token` with mode 0644.

    Raises:
        OSError: it cannot be read, or is not a regular file.
    """
    # Without O_NONBLOCK, a named pipe would wait for a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        return os.read(descriptor, MAX_PLATFORM_TOKEN + 1)
    finally:
        os.close(descriptor)
