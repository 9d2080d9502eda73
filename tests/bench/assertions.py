"""Token requests with client assertions and platform tokens, signed before a round by several processes (RFC 7523)."""

import base64
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from bench.load import post_form
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

LIFETIME = 240
"""Seconds. A round must not take longer."""

_BATCH = 1000
_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"


def requests(url: str, audience: str, client_id: str, key: Path, number: int) -> Iterator[bytes]:
    """Return a number of token requests, each with an assertion of its own."""
    return _in_processes(partial(_signed, url, audience, client_id, key), number)


def with_platform_tokens(url: str, claims: Mapping[str, Any], kid: str, key: Path, number: int) -> Iterator[bytes]:
    """Return a number of token requests, each with a platform token of its own, signed with an RSA key."""
    return _in_processes(partial(_with_platform_tokens, url, claims, kid, key), number)


def _in_processes(sign: Callable[[int], list[bytes]], number: int) -> Iterator[bytes]:
    cpus = os.cpu_count() or 1
    with ProcessPoolExecutor(cpus, initializer=os.sched_setaffinity, initargs=(0, range(cpus))) as pool:
        for batch in pool.map(sign, [_BATCH] * -(-number // _BATCH)):
            yield from batch


def _signed(url: str, audience: str, client_id: str, key: Path, number: int) -> list[bytes]:
    private_key = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private_key, EllipticCurvePrivateKey)
    claims = {"iss": client_id, "sub": client_id, "aud": audience}
    return [_request(url, _jws({"alg": "ES256"}, claims, private_key)) for _ in range(number)]


def _with_platform_tokens(url: str, claims: Mapping[str, Any], kid: str, key: Path, number: int) -> list[bytes]:
    private_key = load_pem_private_key(key.read_bytes(), None)
    assert isinstance(private_key, RSAPrivateKey)
    header = {"alg": "RS256", "kid": kid, "typ": "JWT"}
    return [_request(url, _jws(header, claims, private_key)) for _ in range(number)]


def _request(url: str, assertion: str) -> bytes:
    form = {
        "grant_type": "client_credentials",
        "scope": "env:read",
        "client_assertion_type": _TYPE,
        "client_assertion": assertion,
    }
    return post_form(url, form, {})


def _jws(header: Mapping[str, str], claims: Mapping[str, Any], key: EllipticCurvePrivateKey | RSAPrivateKey) -> str:
    now = int(time.time())
    timed = {**claims, "iat": now, "exp": now + LIFETIME, "jti": secrets.token_urlsafe(16)}
    parts = [_base64url(json.dumps(part, separators=(",", ":")).encode()) for part in (header, timed)]
    message = ".".join(parts).encode()
    if isinstance(key, RSAPrivateKey):
        signature = key.sign(message, PKCS1v15(), SHA256())
    else:
        r, s = decode_dss_signature(key.sign(message, ECDSA(SHA256())))
        signature = r.to_bytes(32, "big") + s.to_bytes(32, "big")
    return ".".join([*parts, _base64url(signature)])


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
