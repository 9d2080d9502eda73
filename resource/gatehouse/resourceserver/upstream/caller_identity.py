"""Tells an upstream who calls, if its policy says so. The caller's token is never part of it.

A server that speaks HTTP gets a signed JWT in a header, and verifies it with the published key set. A program gets
members of `_meta`, and needs no signature: only the gateway writes to its standard input.

The keys are in a file: a JWK set (RFC 7517 5) of private keys. The last one signs. All are published, so that upstreams
can know a key before it signs.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.encoding import compact_json, parse_json
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.files import UnsafeFile, create_file, read_private_text
from gatehouse.shared.service.settings import InvalidSettings

CALLER_HEADER: Final = "Gatehouse-Caller"
"""The header with the JWT."""

CALLER_TYPE: Final = "gatehouse-caller+jwt"
"""The `typ` of the JWT. No access token has it (RFC 8725 3.11)."""

CALLER_META: Final = "io.gatehouse/caller"
"""The member of `_meta`: an object with the `client_id`, the `sub` and the `jti` of the caller's token."""

LIFETIME: Final = 60
"""Seconds. The JWT is sent immediately; the rest allows for clock differences."""

_ALGORITHM: Final = "ES256"
_MAX_FILE: Final = 64 * 1024
_TEMPORARY: Final = ".caller-keys-"


class CallerIdentity:
    """Signs who calls, with the key of the gateway."""

    def __init__(self, keys: Sequence[SigningKey], issuer: str, clock: Clock) -> None:
        """`issuer` is the resource identifier of the gateway. The last of the keys signs."""
        self._key = keys[-1]
        self._issuer = issuer
        self._clock = clock
        self.key_set = compact_json({"keys": [key.public_jwk() for key in keys]}).encode()
        """The document with the public keys (RFC 7517 5), by which an upstream verifies the JWT."""

    @classmethod
    def read(cls, path: Path, issuer: str, clock: Clock) -> "CallerIdentity":
        """Read the keys from their file.

        Raises:
            InvalidSettings: there is no such file, it is malformed, or others can read or replace it.
        """
        return cls(_read(path), issuer, clock)

    def assertion(self, claims: AccessClaims, upstream: str) -> str:
        """Return the JWT about a caller for the upstream with this URL."""
        now = int(self._clock())
        return self._key.sign(
            CALLER_TYPE,
            {"iss": self._issuer, "aud": upstream, **_caller(claims), "iat": now, "exp": now + LIFETIME},
        )


def caller_meta(claims: AccessClaims) -> dict[str, Any]:
    """Return the members of `_meta` that name a caller."""
    return {CALLER_META: _caller(claims)}


def create_caller_keys(path: Path) -> bool:
    """Write a new file with one key, unless the file exists. Return whether it was written."""
    return create_file(path, _document([SigningKey.generate(_ALGORITHM)]), prefix=_TEMPORARY)


def _caller(claims: AccessClaims) -> dict[str, str]:
    return {"client_id": claims.client_id, "sub": claims.sub, "jti": claims.jti}


def _document(keys: Sequence[SigningKey]) -> bytes:
    return json.dumps({"keys": [json.loads(key.private_jwk()) for key in keys]}, indent=2).encode("ascii") + b"\n"


def _read(path: Path) -> Sequence[SigningKey]:
    try:
        text = read_private_text(path, "caller key file", limit=_MAX_FILE, private_folder=True)
    except FileNotFoundError:
        raise InvalidSettings(f"There is no caller key at {path}. Create it with: resourceserver init") from None
    except UnsafeFile as error:
        raise InvalidSettings(str(error)) from None
    try:
        jwks = parse_json(text.encode())["keys"]
        keys = [SigningKey.from_private_jwk(_ALGORITHM, compact_json(jwk).encode()) for jwk in jwks]
    except (ValueError, KeyError, TypeError):
        keys = []
    if not keys:
        raise InvalidSettings(f"{path}: not a JWK set of private keys for {_ALGORITHM}. Restore it from its backup.")
    return keys
