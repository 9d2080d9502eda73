"""Token requests with client assertions (RFC 7523 section 2.2), signed before a round by several processes."""

import base64
import json
import os
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from bench.load import post_form
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

LIFETIME = 240
"""Seconds. A round must not take longer."""

_BATCH = 1000
_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def requests(url: str, audience: str, client_id: str, key: Path, number: int) -> Iterator[bytes]:
    """Return a number of token requests, each with an assertion of its own."""
    sign = partial(_signed, url, audience, client_id, key)
    cpus = os.cpu_count() or 1
    with ProcessPoolExecutor(cpus, initializer=os.sched_setaffinity, initargs=(0, range(cpus))) as pool:
        for batch in pool.map(sign, [_BATCH] * -(-number // _BATCH)):
            yield from batch


def _signed(url: str, audience: str, client_id: str, key: Path, number: int) -> list[bytes]:
    private_key = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private_key, EllipticCurvePrivateKey)
    now = int(time.time())
    claims = {"iss": client_id, "sub": client_id, "aud": audience, "iat": now, "exp": now + LIFETIME}
    return [
        post_form(
            url,
            {
                "grant_type": "client_credentials",
                "scope": "env:read",
                "client_assertion_type": _TYPE,
                "client_assertion": _jws({**claims, "jti": secrets.token_urlsafe(16)}, private_key),
            },
            {},
        )
        for _ in range(number)
    ]


def _jws(claims: dict[str, object], key: EllipticCurvePrivateKey) -> str:
    parts = [_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in ({"alg": "ES256"}, claims)]
    r, s = decode_dss_signature(key.sign(".".join(parts).encode(), ECDSA(SHA256())))
    return ".".join([*parts, _base64url(r.to_bytes(32, "big") + s.to_bytes(32, "big"))])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
