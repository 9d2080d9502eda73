"""Access tokens kept in files between runs of `resourceserver token`, so that many processes make one token request.

Each token has a file that only its owner can access, in a folder with the same protection. A file that is not like that
is not read, and nothing in the folder is trusted to be well-formed.
"""

import fcntl
import hashlib
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gatehouse.bridge.bearer_token import is_bearer_token
from gatehouse.shared.protocol.encoding import InvalidJson, compact_json, parse_json
from gatehouse.shared.service.files import UnsafeFile, read_private_file, replace_file

RESERVE: Final = 60
"""Seconds before its expiry from which on a token is not used any more: a caller needs time to use it."""

_MAX_AGE: Final = 86400
"""Seconds. No token is kept for longer, and files that were not used for longer are deleted."""

_MAX_LENGTH: Final = 16 * 1024
"""Bytes of a file."""

_POLL: Final = 0.02
"""Seconds between two attempts to lock a file."""

_ELSEWHERE: Final = "Set XDG_CACHE_HOME to a folder of your own, or use --no-cache."

_OWN_FILE = re.compile(r"[0-9a-f]{64}(?:\.lock)?|\.unfinished-.*", re.ASCII)


class CacheUnusable(Exception):
    """Tokens cannot be kept safely. The message says how to fix it."""


@dataclass(frozen=True, slots=True)
class StoredToken:
    """An access token, by the wall clock."""

    value: str = field(repr=False)
    scope: str
    expires_at: float
    """Seconds since the epoch; infinite if the issuer stated no lifetime."""


def default_folder() -> Path:
    """Return the folder of this user's tokens (XDG Base Directory Specification). Raises CacheUnusable: no home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    try:
        # A relative path in the variable is invalid and ignored.
        root = Path(base) if Path(base).is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        raise CacheUnusable(f"This user has no home folder. {_ELSEWHERE}") from None
    return root / "gatehouse" / "tokens"


def cache_key(issuer: str | None, resource: str, client_id: str, scope: str, credential: str) -> str:
    """Return the name of a token's file.

    Args:
        issuer: the issuer that the user named; None for the one that the resource names.
        resource: the resource identifier.
        client_id: the client; empty if only its platform token says who it is.
        scope: the requested scopes, sorted.
        credential: a digest of the credential. Another credential never gets the token of this one.
    """
    return hashlib.sha256(compact_json([issuer, resource, client_id, scope, credential]).encode()).hexdigest()


class TokenCache:
    """The tokens in one folder."""

    def __init__(self, folder: Path, warn: Callable[[str], None], now: Callable[[], float] = time.time) -> None:
        """Open a folder, and create it if necessary.

        Args:
            folder: its path. Its parents may be links, and belong to this user or to root.
            warn: tells the user why a file is not used.
            now: seconds since the epoch.

        Raises:
            CacheUnusable: the folder cannot be used, or others can access or replace it.
        """
        self._folder = folder
        self._warn = warn
        self._now = now
        try:
            folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            folder.mkdir(exist_ok=True, mode=0o700)
            status = folder.lstat()
        except OSError as error:
            reason = error.strerror or "input/output"
            raise CacheUnusable(f"{folder} cannot be used: {reason}. {_ELSEWHERE}") from None
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid():
            raise CacheUnusable(f"{folder} is not a folder that you own. Remove it.")
        if stat.S_IMODE(status.st_mode) & 0o077:
            raise CacheUnusable(f"Others can access {folder}. Run: chmod 700 {folder}")
        _require_own_parents(folder)

    def get_or_request(self, key: str, request: Callable[[], StoredToken], timeout: float) -> StoredToken:
        """Return the token of a key. Of several processes without one, one requests it, and the others wait for that.

        Args:
            key: from `cache_key`.
            request: obtains a new token. What it raises is raised.
            timeout: seconds to wait for another process, before this one makes a request of its own.
        """
        if (kept := self.get(key, quiet=True)) is not None:
            return kept
        with self._locked(key, timeout) as is_locked:
            if (kept := self.get(key)) is not None:
                return kept
            token = request()
            if is_locked:
                self.put(key, token)
            return token

    def get(self, key: str, *, quiet: bool = False) -> StoredToken | None:
        """Return the token of a key; None if there is none that can be used for another RESERVE seconds.

        Unless `quiet`, the user is warned of a file that others can access.
        """
        try:
            document = read_private_file(self._folder / key, "cached token", limit=_MAX_LENGTH)
            token = _parse(parse_json(document))
        except (FileNotFoundError, InvalidJson):
            return None
        except UnsafeFile as error:
            if not quiet:
                self._warn(f"{error}.")
            return None
        # A token that expires in the far future was not written by this clock.
        is_usable = token is not None and RESERVE < token.expires_at - self._now() <= _MAX_AGE
        return token if is_usable else None

    def put(self, key: str, token: StoredToken) -> None:
        """Keep a token, unless it expires too soon or never. If that fails, the user is warned: the token is good."""
        if not RESERVE < token.expires_at - self._now() <= _MAX_AGE:
            return
        members = {"access_token": token.value, "scope": token.scope, "expires_at": token.expires_at}
        try:
            replace_file(self._folder / key, compact_json(members).encode())
            self._prune()
        except OSError as error:
            self._warn(f"The token is not kept: {error.strerror or 'input/output'}.")

    def _prune(self) -> None:
        """Delete the files that nobody has used for a day: each credential has files of its own, and some are short."""
        oldest = self._now() - _MAX_AGE
        for path in self._folder.iterdir():
            with suppress(OSError):
                if _OWN_FILE.fullmatch(path.name) and path.lstat().st_mtime < oldest:
                    path.unlink()

    @contextmanager
    def _locked(self, key: str, timeout: float) -> Iterator[bool]:
        """Hold the lock of a key for the block. Yields False if it could not be acquired."""
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
            descriptor = os.open(self._folder / f"{key}.lock", flags, 0o600)
        except OSError as error:
            self._warn(f"The token is not kept, because {self._folder} cannot be used: {error.strerror}.")
            yield False
            return
        try:
            yield _lock(descriptor, timeout)
        finally:
            os.close(descriptor)


def _require_own_parents(folder: Path) -> None:
    """Refuse a folder that another user could replace by one of their own while a token is requested.

    Files of root would then belong to that user. Raises CacheUnusable.
    """
    parent = folder.parent.resolve()
    for path in (parent, *parent.parents):
        if path.stat().st_uid not in {0, os.geteuid()}:
            raise CacheUnusable(f"{path} belongs to another user. Set XDG_CACHE_HOME to a folder of your own.")
    # Only the one that this module creates: the cache volume of a pod often has mode 0777.
    if parent.stat().st_mode & 0o002:
        raise CacheUnusable(f"Others can replace {folder}. Run: chmod go-w {parent}")


def _lock(descriptor: int, timeout: float) -> bool:
    """Lock a file. Return whether that succeeded within the timeout."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                return False
            time.sleep(_POLL)
        except OSError:
            # A file system without locks.
            return False
        else:
            # A file that is in use is not deleted.
            os.utime(descriptor)
            return True


def _parse(members: Any) -> StoredToken | None:
    """Return the token in a document; None for anything that this module does not write."""
    if not isinstance(members, dict) or members.keys() != {"access_token", "scope", "expires_at"}:
        return None
    value, scope, expires_at = members["access_token"], members["scope"], members["expires_at"]
    if not is_bearer_token(value) or not isinstance(scope, str):
        return None
    if not isinstance(expires_at, int | float) or isinstance(expires_at, bool):
        return None
    return StoredToken(value, scope, expires_at)
