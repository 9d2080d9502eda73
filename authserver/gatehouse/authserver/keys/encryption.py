"""The sealing key: what it encrypts is of no use to somebody who has only the database.

AES-256-GCM with a random nonce. The associated data says what the plaintext is for, so that a sealed value that
is moved to another row does not open there.
"""

import fcntl
import json
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gatehouse.authserver.settings import Settings
from gatehouse.shared.protocol import base64url
from gatehouse.shared.service.files import flush_folder, new_file
from gatehouse.shared.service.settings import InvalidSettings

FILE_NAME = "sealing.key"
NEXT_FILE_NAME = "sealing.key.next"
"""Where the new key is while a reseal is under way. With both files there, either key opens."""
_TEMPORARY = ".sealing-"
_LENGTH = 32
_NONCE_LENGTH = 12
_VERSION = b"\x01"


class DecryptionFailed(Exception):
    """The value was altered, moved, or sealed with another key."""


class SealingKey:
    """Seals and opens small secrets. During a reseal there are two keys: the first one seals, either one opens."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = keys
        self._ciphers = tuple(AESGCM(key) for key in keys)

    def seal(self, plaintext: bytes, *purpose: str) -> bytes:
        """Encrypt for one purpose, such as `("signing_key", issuer, kid, alg)`."""
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        return _VERSION + nonce + self._ciphers[0].encrypt(nonce, plaintext, _associated_data(purpose))

    def unseal(self, sealed: bytes, *purpose: str) -> bytes:
        """Decrypt what was sealed for the same purpose.

        Raises:
            DecryptionFailed: it was not sealed by this key for this purpose.
        """
        return self._open(sealed, purpose)[1]

    @property
    def newest(self) -> "SealingKey | None":
        """The key that a reseal wraps with; None while there is only one."""
        return SealingKey(self._keys[-1]) if len(self._keys) > 1 else None

    def find_key(self, sealed: bytes, *purpose: str) -> "SealingKey":
        """Return the one of its keys that a value was sealed with. Raises DecryptionFailed."""
        return SealingKey(self._open(sealed, purpose)[0])

    def _open(self, sealed: bytes, purpose: tuple[str, ...]) -> tuple[bytes, bytes]:
        nonce, ciphertext = sealed[1 : 1 + _NONCE_LENGTH], sealed[1 + _NONCE_LENGTH :]
        if sealed[:1] != _VERSION:
            raise DecryptionFailed
        for key, cipher in zip(self._keys, self._ciphers, strict=True):
            try:
                return key, cipher.decrypt(nonce, ciphertext, _associated_data(purpose))
            except (InvalidTag, ValueError):
                continue
        raise DecryptionFailed


def _associated_data(purpose: tuple[str, ...]) -> bytes:
    return json.dumps(["gatehouse", *purpose]).encode()


def load_sealing_key(settings: Settings) -> SealingKey:
    """Return the sealing key from the environment or from its file, with the one that a reseal is about to put there.

    Raises:
        InvalidSettings: there is none, it is malformed, or others than its owner can read the file.
    """
    if settings.sealing_key is not None:
        texts = settings.sealing_key.get_secret_value().split(",", 1)
        keys = [_decode(text.strip(), "AUTHSERVER_SEALING_KEY") for text in texts]
        if len(set(keys)) < len(keys):
            # To reseal would be said to be done, and the key that was to go would open everything still.
            raise InvalidSettings("AUTHSERVER_SEALING_KEY names one key twice. Write OLD,NEW, or one key.")
        return SealingKey(*keys)
    # This order: when a reseal renames the next key between the two, the second read finds it.
    next_key = _read_file(settings.keys_dir / NEXT_FILE_NAME)
    path = settings.keys_dir / FILE_NAME
    key = _read_file(path)
    if key is None:
        raise InvalidSettings(f"There is no sealing key at {path}. Run: authserver init")
    return SealingKey(key) if next_key is None else SealingKey(key, next_key)


def _read_file(path: Path) -> bytes | None:
    """Return the key in a file, or None where there is no file. Raises InvalidSettings."""
    try:
        # O_NOFOLLOW: a link could lead to a file that somebody else controls.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    except OSError:
        raise InvalidSettings(
            f"The sealing key {path} cannot be read, or is a link. Make it a file of yours."
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        _require_private(path, os.fstat(file.fileno()))
        return _decode(file.read(256).decode("ascii", "replace").strip(), str(path))


def has_sealing_key(settings: Settings) -> bool:
    """Tell whether there is a sealing key, usable or not."""
    return settings.sealing_key is not None or os.path.lexists(settings.keys_dir / FILE_NAME)


def lost_sealing_key(settings: Settings) -> InvalidSettings:
    """Return what to say where there is no sealing key, and the database holds what only that one opens."""
    path = settings.keys_dir / FILE_NAME
    return InvalidSettings(
        f"The database holds signing keys and secrets that only their sealing key opens, and there is none at {path}. "
        f"Restore {path} from its backup, or set AUTHSERVER_SEALING_KEY to it. If it is lost, start again with another "
        "database: every client is to be registered again."
    )


def _require_private(path: Path, status: os.stat_result) -> None:
    """Refuse a key that somebody else can know: who wrote it, may read it, or may put another in its place."""
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in {0, os.geteuid()}:
        raise InvalidSettings(f"The sealing key {path} is not a file of yours. Replace it by one that is.")
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise InvalidSettings(f"The sealing key {path} is readable by others. Run: chmod 600 {path}")
    if path.parent.stat().st_mode & 0o022:
        raise InvalidSettings(f"Others can replace the sealing key {path}. Run: chmod go-w {path.parent}")


def _decode(text: str, source: str) -> bytes:
    try:
        # Another program may have written its padding.
        key = base64url.decode(text.removesuffix("="))
    except base64url.InvalidBase64url:
        key = b""
    if len(key) != _LENGTH:
        raise InvalidSettings(f"{source}: the sealing key must be 32 bytes in base64url")
    return key


def create_sealing_key(settings: Settings) -> bool:
    """Write a new sealing key to its file, unless there is one or the environment holds it. Tell whether it was.

    Of two processes that do this at once, one key remains.
    """
    return settings.sealing_key is None and _write_new(settings.keys_dir / FILE_NAME)


def create_next_sealing_key(settings: Settings) -> bool:
    """Write the key that a reseal will put in place, unless it is there. Tell whether it was written."""
    return _write_new(settings.keys_dir / NEXT_FILE_NAME)


def put_next_sealing_key_in_place(settings: Settings) -> None:
    """Let the next sealing key be the one. At every moment of this, a reader finds it under one of its names."""
    (settings.keys_dir / NEXT_FILE_NAME).replace(settings.keys_dir / FILE_NAME)
    for unfinished in settings.keys_dir.glob(f"{_TEMPORARY}*"):
        # Of a process that was killed while it wrote one.
        unfinished.unlink()
    flush_folder(settings.keys_dir)


@contextmanager
def one_reseal_at_a_time(settings: Settings) -> Iterator[None]:
    """Hold the folder of the sealing key, so that no other process renames what is in it."""
    descriptor = os.open(settings.keys_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def generate_sealing_key() -> str:
    """Return a new key as it is written down."""
    return base64url.encode(secrets.token_bytes(_LENGTH))


def _write_new(path: Path) -> bool:
    """Write a new key to a file that is not there yet, complete and on disk before it has its name."""
    if path.exists():
        return False
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        with new_file(path, prefix=_TEMPORARY) as file:
            file.write(f"{generate_sealing_key()}\n".encode("ascii"))
    except FileExistsError:
        return False
    return True
