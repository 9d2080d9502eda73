"""The key that encrypts the ids of the callers' sessions at an upstream.

Anyone who knows such an id can act as the caller at the upstream. So a copy of the database alone
reveals none. The key is in a file, as a JWK (RFC 7517): if the file is lost, `resourceserver init` creates another, and
callers get new sessions.
"""

import hmac
import json
import secrets
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from gatehouse.shared.protocol.encoding import compact_json, decode_base64url, encode_base64url, parse_json
from gatehouse.shared.service.files import UnsafeFile, create_file, read_private_text
from gatehouse.shared.service.settings import InvalidSettings

_LENGTH: Final = 32
_NONCE: Final = 12
_MAX_FILE: Final = 4096
_TEMPORARY: Final = ".session-key-"


class SessionKey:
    """Encrypts texts (AES-256-GCM, random nonces) for one purpose each, and makes digests of them."""

    def __init__(self, key: bytes) -> None:
        # One key for each algorithm.
        self._cipher = AESGCM(hmac.digest(key, b"encryption", "sha256"))
        self._digest_key = hmac.digest(key, b"digest", "sha256")

    @classmethod
    def read(cls, path: Path) -> "SessionKey":
        """Read the key.

        Raises:
            InvalidSettings: there is no such file, it is malformed, or others can read or replace it.
        """
        try:
            text = read_private_text(path, "session key file", limit=_MAX_FILE, private_folder=True)
        except FileNotFoundError:
            raise InvalidSettings(f"There is no session key at {path}. Run: resourceserver init") from None
        except UnsafeFile as error:
            raise InvalidSettings(str(error)) from None
        try:
            jwk = parse_json(text.encode())
            key = decode_base64url(jwk["k"]) if jwk["kty"] == "oct" else b""
        except (ValueError, KeyError, TypeError, AttributeError):
            key = b""
        if len(key) != _LENGTH:
            raise InvalidSettings(
                f"{path}: not a JWK with kty oct and 32 bytes in base64url as k. Remove it and run: resourceserver init"
            )
        return cls(key)

    def encrypt(self, text: str, *purpose: str) -> bytes:
        """Encrypt a text for a purpose, which is authenticated with it."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + self._cipher.encrypt(nonce, text.encode(), _associated_data(purpose))

    def decrypt(self, encrypted: bytes, *purpose: str) -> str | None:
        """Return the text; None if it was not encrypted with this key for this purpose."""
        try:
            plaintext = self._cipher.decrypt(encrypted[:_NONCE], encrypted[_NONCE:], _associated_data(purpose))
        except (InvalidTag, ValueError):
            return None
        return plaintext.decode()

    def digest(self, text: str) -> str:
        """Return the HMAC-SHA-256 of a text in hexadecimal digits. It reveals only which texts are equal."""
        return hmac.new(self._digest_key, text.encode(), "sha256").hexdigest()


def _associated_data(purpose: tuple[str, ...]) -> bytes:
    # As JSON, so that two different lists never have the same bytes.
    return compact_json(["gatehouse", "upstream_session", *purpose]).encode()


def create_session_key(path: Path) -> bool:
    """Write a new key, unless the file exists. Return whether it was written."""
    jwk = {"kty": "oct", "alg": "A256GCM", "k": encode_base64url(secrets.token_bytes(_LENGTH))}
    return create_file(path, json.dumps(jwk, indent=2).encode("ascii") + b"\n", prefix=_TEMPORARY)
