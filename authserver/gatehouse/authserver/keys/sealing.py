"""The sealing key: what it encrypts is of no use to somebody who has only the database.

AES-256-GCM with a random nonce. The associated data says what the plaintext is for, so that a sealed value that
is moved to another row does not open there.
"""

import base64
import binascii
import json
import os
import secrets
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gatehouse.authserver.settings import Settings
from gatehouse.shared.settings import InvalidSettings

FILE_NAME = "sealing.key"
_LENGTH = 32
_NONCE_LENGTH = 12
_VERSION = b"\x01"


class CannotUnseal(Exception):
    """The value was altered, moved, or sealed with another key."""


class SealingKey:
    """Seals and opens small secrets."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    def seal(self, plaintext: bytes, *purpose: str) -> bytes:
        """Encrypt for one purpose, such as `("signing_key", issuer, kid, alg)`."""
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        return _VERSION + nonce + self._cipher.encrypt(nonce, plaintext, _associated_data(purpose))

    def unseal(self, sealed: bytes, *purpose: str) -> bytes:
        """Decrypt what was sealed for the same purpose.

        Raises:
            CannotUnseal: it was not sealed by this key for this purpose.
        """
        nonce, ciphertext = sealed[1 : 1 + _NONCE_LENGTH], sealed[1 + _NONCE_LENGTH :]
        if sealed[:1] != _VERSION:
            raise CannotUnseal
        try:
            return self._cipher.decrypt(nonce, ciphertext, _associated_data(purpose))
        except (InvalidTag, ValueError):
            raise CannotUnseal from None


def _associated_data(purpose: tuple[str, ...]) -> bytes:
    return json.dumps(["gatehouse", *purpose]).encode()


def load_sealing_key(settings: Settings) -> SealingKey:
    """Return the sealing key from the environment or from its file.

    Raises:
        InvalidSettings: there is none, it is malformed, or others than its owner can read the file.
    """
    if settings.sealing_key is not None:
        return _decode(settings.sealing_key.get_secret_value(), "AUTHSERVER_SEALING_KEY")
    path = settings.keys_dir / FILE_NAME
    try:
        # O_NOFOLLOW: a link could lead to a file that somebody else controls.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InvalidSettings(f"There is no sealing key at {path}. Run: authserver init") from None
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
        f"Restore {path} from its backup, or set AUTHSERVER_SEALING_KEY to it. If it is lost, begin anew with another "
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


def _decode(text: str, source: str) -> SealingKey:
    try:
        key = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) != _LENGTH:
        raise InvalidSettings(f"{source}: the sealing key must be 32 bytes in base64url")
    return SealingKey(key)


def create_sealing_key(settings: Settings) -> bool:
    """Write a new sealing key to its file, unless there is one or the environment holds it. Tell whether it was.

    Of two processes that do this at once, one key remains.
    """
    path = settings.keys_dir / FILE_NAME
    if settings.sealing_key is not None or path.exists():
        return False
    settings.keys_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor, temporary = tempfile.mkstemp(dir=settings.keys_dir, prefix=".sealing-")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(base64.urlsafe_b64encode(secrets.token_bytes(_LENGTH)).rstrip(b"=") + b"\n")
            file.flush()
            os.fsync(file.fileno())
        # A link either makes the complete file appear under its name or fails because one is there.
        os.link(temporary, path)
    except FileExistsError:
        return False
    finally:
        Path(temporary).unlink()
    return True
