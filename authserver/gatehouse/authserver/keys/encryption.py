"""The sealing key: it encrypts private keys and peppers, so that a copy of the database alone reveals none of them.

AES-256-GCM with a random nonce. The associated data names the purpose of the plaintext, so that a sealed value that is
moved to another row does not decrypt there.
"""

import json
import os
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gatehouse.authserver.settings import Settings
from gatehouse.shared.protocol.encoding import InvalidBase64url, decode_base64url, encode_base64url
from gatehouse.shared.service.files import UnsafeFile, create_file, flush_folder, read_private_text
from gatehouse.shared.service.settings import InvalidSettings

FILE_NAME = "sealing.key"
NEXT_FILE_NAME = "sealing.key.next"
"""The new key while a rotation is in progress. While both files exist, values decrypt with either key."""
_TEMPORARY = ".sealing-"
_LENGTH = 32
_NONCE_LENGTH = 12
_VERSION = b"\x01"
_MAX_FILE = 256
"""Bytes of a sealing key file that are read."""


class DecryptionFailed(Exception):
    """The value was altered or moved, or was sealed with another key."""


class SealingKey:
    """Encrypts and decrypts small secrets. During a rotation it holds two keys: it seals with the first one."""

    def __init__(self, *keys: bytes) -> None:
        self._keys = keys
        self._ciphers = tuple(AESGCM(key) for key in keys)

    def seal(self, plaintext: bytes, *purpose: str) -> bytes:
        """Encrypt for one purpose, such as `("signing_key", issuer, kid, alg)`."""
        nonce = secrets.token_bytes(_NONCE_LENGTH)
        return _VERSION + nonce + self._ciphers[0].encrypt(nonce, plaintext, _associated_data(purpose))

    def unseal(self, sealed: bytes, *purpose: str) -> bytes:
        """Decrypt a value that was sealed for the same purpose.

        Raises:
            DecryptionFailed: it was not sealed with one of these keys for this purpose.
        """
        return self.find_key(sealed, *purpose)[1]

    def find_key(self, sealed: bytes, *purpose: str) -> tuple["SealingKey", bytes]:
        """Return the key that a value was sealed with, and its plaintext. Raises DecryptionFailed."""
        nonce, ciphertext = sealed[1 : 1 + _NONCE_LENGTH], sealed[1 + _NONCE_LENGTH :]
        if sealed[:1] != _VERSION:
            raise DecryptionFailed
        for key, cipher in zip(self._keys, self._ciphers, strict=True):
            try:
                plaintext = cipher.decrypt(nonce, ciphertext, _associated_data(purpose))
            except (InvalidTag, ValueError):
                continue
            return (self if len(self._keys) == 1 else SealingKey(key)), plaintext
        raise DecryptionFailed

    @property
    def next_key(self) -> "SealingKey | None":
        """The key that a rotation seals with; None while there is only one."""
        return SealingKey(self._keys[-1]) if len(self._keys) > 1 else None


def _associated_data(purpose: tuple[str, ...]) -> bytes:
    return json.dumps(["gatehouse", *purpose]).encode()


def load_sealing_key(settings: Settings) -> SealingKey:
    """Return the sealing key from the environment or from its file, together with the next one during a rotation.

    Raises:
        InvalidSettings: there is none, it is malformed, or users other than its owner can read the file.
    """
    if settings.sealing_key is not None:
        texts = settings.sealing_key.get_secret_value().split(",", 1)
        keys = [_decode(text.strip(), "AUTHSERVER_SEALING_KEY") for text in texts]
        if len(set(keys)) < len(keys):
            # A rotation would report success, and the key to be replaced would still decrypt everything.
            raise InvalidSettings("AUTHSERVER_SEALING_KEY names one key twice. Write OLD,NEW, or one key.")
        return SealingKey(*keys)
    # In this order: if a rotation renames the next key between the two reads, the second one finds it.
    next_key = _read_file(settings.keys_dir / NEXT_FILE_NAME)
    path = settings.keys_dir / FILE_NAME
    key = _read_file(path)
    if key is None:
        raise InvalidSettings(f"There is no sealing key at {path}. Run: authserver init")
    return SealingKey(key) if next_key is None else SealingKey(key, next_key)


def _read_file(path: Path) -> bytes | None:
    """Return the key in a file, or None if the file does not exist. Raises InvalidSettings."""
    try:
        text = read_private_text(path, "sealing key", limit=_MAX_FILE, private_folder=True)
    except FileNotFoundError:
        return None
    except UnsafeFile as error:
        raise InvalidSettings(f"{error}; or set AUTHSERVER_SEALING_KEY to the key") from None
    return _decode(text, str(path))


def has_sealing_key(settings: Settings) -> bool:
    """Tell whether there is a sealing key, usable or not."""
    return settings.sealing_key is not None or os.path.lexists(settings.keys_dir / FILE_NAME)


def lost_sealing_key(settings: Settings) -> InvalidSettings:
    """Return the error for a database with sealed rows whose sealing key is missing."""
    path = settings.keys_dir / FILE_NAME
    return InvalidSettings(
        "The database holds signing keys and secrets that can only be decrypted with their sealing key, and there is "
        f"none at {path}. Restore {path} from its backup, or set AUTHSERVER_SEALING_KEY to it. If it is lost, start "
        "again with an empty database and register every client again."
    )


def _decode(text: str, source: str) -> bytes:
    try:
        # Another program may have written its padding.
        key = decode_base64url(text.removesuffix("="))
    except InvalidBase64url:
        key = b""
    if len(key) != _LENGTH:
        raise InvalidSettings(f"{source}: the sealing key must be 32 bytes in base64url")
    return key


def create_sealing_key(settings: Settings) -> bool:
    """Write a new sealing key to its file, unless the file exists or the environment holds the key.

    Return whether it was written. If two processes do this at once, one key remains.
    """
    return settings.sealing_key is None and _write_new(settings.keys_dir / FILE_NAME)


def create_next_sealing_key(settings: Settings) -> bool:
    """Write the key that a rotation will switch to, unless it exists. Return whether it was written."""
    return _write_new(settings.keys_dir / NEXT_FILE_NAME)


def activate_next_sealing_key(settings: Settings) -> None:
    """Replace the sealing key with the next one. At any moment, readers find the next key under one of its names."""
    (settings.keys_dir / NEXT_FILE_NAME).replace(settings.keys_dir / FILE_NAME)
    for unfinished in settings.keys_dir.glob(f"{_TEMPORARY}*"):
        # Left by a process that was killed while it wrote a key.
        unfinished.unlink()
    flush_folder(settings.keys_dir)


def generate_sealing_key() -> str:
    """Return a new key in base64url."""
    return encode_base64url(secrets.token_bytes(_LENGTH))


def _write_new(path: Path) -> bool:
    """Write a new key to a file that does not exist yet. It is complete and on disk before it gets its name."""
    return create_file(path, f"{generate_sealing_key()}\n".encode("ascii"), prefix=_TEMPORARY)
