"""The keys that authenticate the audit log. They are in a file, so that access to the database alone forges no event.

The file is a JWK set (RFC 7517, section 5) of symmetric keys (RFC 7518, section 6.4). The last key is current. The
others are retired: they verify older events, and have an `exp` (OpenID Federation 1.0, section 8.7.2), from which on
they authenticate no further ones. The keys are independent of the sealing key, whose rotation leaves the audit log
verifiable.
"""

import hmac
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from pydantic_core import to_json

from gatehouse.shared.protocol.encoding import decode_base64url, encode_base64url, parse_json
from gatehouse.shared.service.files import UnsafeFile, create_file, locked_folder, read_private_text, replace_file
from gatehouse.shared.service.settings import InvalidSettings

MAX_KID: Final = 32
"""Characters of a key id, at most."""

_LENGTH: Final = 32
_MAX_FILE: Final = 256 * 1024
"""Bytes of the file that are read: more than a thousand keys."""
_TEMPORARY: Final = ".audit-keys-"

_Jwk = Mapping[str, Any]

_NONE: Final[Mapping[str, int]] = MappingProxyType({})


class AuditKeys:
    """The keys of one program, by id. The last one is current."""

    def __init__(self, keys: Mapping[str, bytes], expiries: Mapping[str, int] = _NONE) -> None:
        """`expiries` says when each retired key expires, in seconds since the epoch."""
        # A copy of an HMAC object takes less time than preparing the key again for every row.
        self._keys = {kid: hmac.new(key, digestmod="sha256") for kid, key in keys.items()}
        self._expiries = {kid: time * 1000 for kid, time in expiries.items()}
        self.kid = list(self._keys)[-1]
        """The id of the current key."""

    @classmethod
    def read(cls, path: Path) -> "AuditKeys":
        """Read the keys.

        Raises:
            InvalidSettings: there is no such file, it is malformed, or others can read or replace it.
        """
        jwks = _read(path)
        keys = {jwk["kid"]: decode_base64url(jwk["k"]) for jwk in jwks}
        return cls(keys, {jwk["kid"]: jwk["exp"] for jwk in jwks[:-1]})

    def expiry(self, kid: str) -> int | None:
        """Return when a retired key expires, in milliseconds since the epoch; None for any other key."""
        return self._expiries.get(kid)

    def expired(self, time: int, since: int = 0) -> Collection[str]:
        """Return the keys that expire at a time or before, but after `since`, both in milliseconds since the epoch."""
        return [kid for kid, expiry in self._expiries.items() if since < expiry <= time]

    def __contains__(self, kid: object) -> bool:
        """Tell whether there is a key with this id."""
        return kid in self._keys

    def authenticate(self, kid: str, *values: object) -> str:
        """Return the HMAC-SHA-256 of values (texts, whole numbers or None) in hexadecimal digits.

        The values are authenticated as a JSON array, so that two different lists never have the same bytes. Raises
        KeyError if there is no such key.
        """
        mac = self._keys[kid].copy()
        mac.update(to_json(values))
        return mac.hexdigest()


class AuditKeyFile:
    """The keys of one process, which are read for its first event, and again when their file has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: AuditKeys | None = None
        self._version: object = None

    def current(self) -> AuditKeys:
        """Return the keys that were read last. Raises InvalidSettings, as `AuditKeys.read` does, the first time."""
        return self._keys or self.reload()

    def reload(self) -> AuditKeys:
        """Return the keys, read again if the file has changed.

        Raises:
            InvalidSettings: the new keys cannot be used. `current` still returns the last ones.
        """
        version = _version(self._path)
        if self._keys is None or version != self._version:
            self._keys = AuditKeys.read(self._path)
            self._version = version
        return self._keys


def _version(path: Path) -> object:
    """Return what changes with every replacement of a file; None if there is no file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def create_audit_keys(path: Path) -> bool:
    """Write a new file with one key, unless the file exists. Return whether it was written.

    If two processes do this at once, one key remains.
    """
    return create_file(path, _document([_generate()]), prefix=_TEMPORARY)


def rotate_audit_keys(path: Path, expiry: int) -> str:
    """Add a new key, which becomes the current one, and return its id. Older events stay verifiable.

    `expiry` is when the key that was current until now expires, in seconds since the epoch. Until then, processes that
    have not read the new key may continue with it.

    Raises:
        InvalidSettings: the file cannot be used, as in `AuditKeys.read`.
        OSError: the file cannot be written. It is unchanged then.
    """
    new_key = _generate()
    with locked_folder(path.parent):
        *retired, last = _read(path)
        replace_file(path, _document([*retired, {**last, "exp": expiry}, new_key]))
    return str(new_key["kid"])


def _generate() -> _Jwk:
    key = encode_base64url(secrets.token_bytes(_LENGTH))
    return {"kty": "oct", "kid": f"audit_{secrets.token_hex(8)}", "alg": "HS256", "k": key}


def _document(keys: Sequence[_Jwk]) -> bytes:
    return json.dumps({"keys": keys}, indent=2).encode("ascii") + b"\n"


def _read(path: Path) -> Sequence[_Jwk]:
    try:
        text = read_private_text(path, "audit key file", limit=_MAX_FILE, private_folder=True)
    except FileNotFoundError:
        raise InvalidSettings(
            f"There are no audit keys at {path}. Create them with the init command of this server. If the audit log "
            "has events already, restore the file from its backup instead: new keys do not verify them."
        ) from None
    except UnsafeFile as error:
        raise InvalidSettings(str(error)) from None
    try:
        keys: list[_Jwk] = parse_json(text.encode())["keys"]
        valid = len({jwk["kid"] for jwk in keys if _is_valid(jwk, current=jwk is keys[-1])}) == len(keys) > 0
    except (ValueError, KeyError, TypeError):
        valid = False
    if not valid:
        raise InvalidSettings(
            f"{path}: not a JWK set whose keys have kty oct, a kid, 32 bytes in base64url as k and, except the last "
            "one, exp, the time of their expiry. Restore the file from its backup."
        )
    return keys


def _is_valid(jwk: _Jwk, *, current: bool) -> bool:
    valid = jwk["kty"] == "oct" and 0 < len(jwk["kid"]) <= MAX_KID and len(decode_base64url(jwk["k"])) == _LENGTH
    return valid and ("exp" not in jwk if current else type(jwk["exp"]) is int)
