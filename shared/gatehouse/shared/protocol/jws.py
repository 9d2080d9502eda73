"""JSON Web Signature: the only module that uses joserfc (RFC 7515, 7517, 7518, 8037, 8725).

joserfc reads and writes keys, and computes the signatures of every algorithm except ES256.

`SigningKey` signs. Verification takes three steps: `read_header`, the caller's choice of a key, and `verify`. Each
refuses input that it cannot prove valid. No part of a token is decoded before its length and alphabet are checked, and
no header member can point at a key: `alg`, `kid` and `typ` are the only members allowed, and those that the caller
allows, whose values are never read.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, NoReturn, Protocol, get_args

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256
from joserfc.errors import JoseError
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey, import_key
from joserfc.jws import JWSRegistry

from gatehouse.shared.protocol.claims import MAX_TOKEN_LENGTH
from gatehouse.shared.protocol.encoding import (
    InvalidBase64url,
    InvalidJson,
    compact_json,
    decode_base64url,
    encode_base64url,
    parse_json,
)
from gatehouse.shared.protocol.public_keys import MIN_RSA_BITS

KEY_TYPES = {"ES256": "EC", "RS256": "RSA", "PS256": "RSA", "EdDSA": "OKP"}
"""The JWK `kty` of each algorithm's keys."""

CURVES = {"EC": "P-256", "OKP": "Ed25519"}
"""The JWK `crv` of keys on a curve, by `kty`."""

ALGORITHM_NAMES = {**{name: name for name in KEY_TYPES}, "Ed25519": "EdDSA"}
"""The algorithm that each accepted value of `alg` names. `Ed25519` is the name of RFC 9864."""

ALLOWED_ALGORITHMS = frozenset(ALGORITHM_NAMES)
"""Every algorithm that either server signs with or accepts. All are asymmetric (RFC 8725 3.1, 3.2)."""

MAX_KID = 128
"""Maximum length of a `kid`, in characters."""

SigningAlgorithm = Literal["ES256", "RS256", "EdDSA"]
SIGNING_ALGORITHMS: tuple[SigningAlgorithm, ...] = get_args(SigningAlgorithm)
"""What the authorization server can sign access tokens with."""

_PUBLIC_MEMBERS = ("kty", "crv", "x", "y", "n", "e")
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})

AsymmetricKey = ECKey | OKPKey | RSAKey
"""A key to sign with. Its public half can be published."""

_KEY_CLASSES: dict[str, type[AsymmetricKey]] = {"EC": ECKey, "OKP": OKPKey, "RSA": RSAKey}


class _Algorithm(Protocol):
    """Computes and verifies signatures. Its keys have the right type and curve: that is checked on import."""

    def sign(self, msg: bytes, key: Any) -> bytes:
        """Return a signature."""
        ...

    def verify(self, msg: bytes, sig: bytes, key: Any) -> bool:
        """Tell whether a signature matches."""
        ...


class _ES256:
    """ECDSA on P-256 with SHA-256 (RFC 7518 3.4). Signing takes three quarters of the time that joserfc's takes."""

    _COORDINATE = 32
    """Octets of each of the two numbers of a signature, R and S."""
    _SCHEME = ECDSA(SHA256())

    def sign(self, msg: bytes, key: Any) -> bytes:
        r, s = decode_dss_signature(key.private_key.sign(msg, self._SCHEME))
        return r.to_bytes(self._COORDINATE) + s.to_bytes(self._COORDINATE)

    def verify(self, msg: bytes, sig: bytes, key: Any) -> bool:
        if len(sig) != 2 * self._COORDINATE:
            return False
        r, s = int.from_bytes(sig[: self._COORDINATE]), int.from_bytes(sig[self._COORDINATE :])
        try:
            key.public_key.verify(encode_dss_signature(r, s), msg, self._SCHEME)
        except InvalidSignature:
            return False
        return True


_ALGORITHMS: Mapping[str, _Algorithm] = {name: JWSRegistry.algorithms[name] for name in KEY_TYPES} | {"ES256": _ES256()}


class InvalidToken(Exception):
    """The token is malformed or not validly signed. `reason` is for the operator, never for the client.

    `cause` is one of a few constants, for metrics.
    """

    def __init__(self, reason: str, cause: str = "malformed_token") -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause


class InvalidKeySet(ValueError):
    """The document is not a usable key set (RFC 7517 5). The message holds no key material."""


@dataclass(frozen=True, slots=True)
class Header:
    """The protected header of a JWS, not yet verified."""

    alg: str
    """One of KEY_TYPES: the algorithm, under whichever of its names the header has it."""
    kid: str | None
    typ: str | None
    others: frozenset[str] = frozenset()
    """The names of further members, which the caller of `read_header` allowed. Their values are not read."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, bound to the one algorithm it may verify (RFC 8725 3.1)."""

    kid: str
    alg: str
    thumbprint: str
    """RFC 7638, SHA-256, base64url: identifies the key itself, under any `kid`."""
    key: Key


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key, named by its RFC 7638 thumbprint and bound to one algorithm."""

    kid: str
    """Empty for the key of a client, which the authorization server may know by another name."""
    alg: str
    key: AsymmetricKey

    @property
    def is_slow(self) -> bool:
        """Whether a signature takes about a millisecond (RSA), too long for an event loop."""
        return KEY_TYPES[self.alg] == "RSA"

    @classmethod
    def generate(cls, alg: str) -> "SigningKey":
        """Generate a key for one of SIGNING_ALGORITHMS."""
        match KEY_TYPES[alg]:
            case "EC":
                return cls._named(alg, ECKey.generate_key("P-256", private=True))
            case "OKP":
                return cls._named(alg, OKPKey.generate_key("Ed25519", private=True))
            case _:
                return cls._named(alg, RSAKey.generate_key(MIN_RSA_BITS, private=True))

    @classmethod
    def from_private_jwk(cls, alg: str, document: bytes) -> "SigningKey":
        """Read a key that `private_jwk` wrote.

        Raises:
            InvalidKeySet: the document is not a private key of the algorithm's type.
        """
        try:
            key = import_key(json.loads(document))
        except (JoseError, ValueError, TypeError):
            raise InvalidKeySet("not a private JWK") from None
        return cls._named(alg, _private_key(alg, key))

    @classmethod
    def from_private_pem(cls, alg: str, document: bytes) -> "SigningKey":
        """Read a client's key in PEM, to sign assertions with. They carry no `kid`.

        Raises:
            InvalidKeySet: the document is not a private key of the algorithm's type.
        """
        try:
            key = _KEY_CLASSES[KEY_TYPES[alg]].import_key(document)
        except (JoseError, ValueError, TypeError, KeyError):
            raise InvalidKeySet(f"not a private key for {alg} in PEM") from None
        return cls(kid="", alg=alg, key=_private_key(alg, key))

    @classmethod
    def _named(cls, alg: str, key: AsymmetricKey) -> "SigningKey":
        return cls(kid=key.thumbprint(), alg=alg, key=key)

    def private_pem(self) -> bytes:
        """Return the private key as PKCS #8 in PEM, for a client to store."""
        return self.key.as_pem(private=True)

    def private_jwk(self) -> bytes:
        """Return the private key as JSON. The caller must encrypt it before storing it."""
        return json.dumps(self.key.as_dict(private=True)).encode()

    def public_jwk(self) -> dict[str, str]:
        """Return the published form (RFC 7517 4), derived from the private half."""
        members = {name: str(value) for name, value in self.key.as_dict(private=False).items()}
        return {**members, "kid": self.kid, "alg": self.alg, "use": "sig"}

    def sign(self, typ: str, claims: Mapping[str, Any]) -> str:
        """Return a signed JWT in compact serialization (RFC 7519 7.1)."""
        message = f"{_header_segment(self.alg, self.kid, typ)}.{encode_base64url(compact_json(claims).encode())}"
        signature = _ALGORITHMS[self.alg].sign(message.encode(), self.key)
        return f"{message}.{encode_base64url(signature)}"


def _private_key(alg: str, key: Key) -> AsymmetricKey:
    """Return a key that can sign with an algorithm. Raises InvalidKeySet for any other."""
    if isinstance(key, OctKey) or key.key_type != KEY_TYPES.get(alg) or not key.is_private:
        raise InvalidKeySet(f"not a private key for {alg}")
    if not isinstance(key, RSAKey) and key.curve_name != CURVES[key.key_type]:
        raise InvalidKeySet(f"not on the curve of {alg}")
    return key


# One server signs with a few keys, for a few types.
@lru_cache(maxsize=32)
def _header_segment(alg: str, kid: str, typ: str) -> str:
    name = {"kid": kid} if kid else {}
    return encode_base64url(compact_json({"alg": alg, **name, "typ": typ}).encode())


def _refuse(reason: str) -> NoReturn:
    raise InvalidToken(reason)


def _decode_segment(segment: str) -> bytes:
    try:
        return decode_base64url(segment)
    except InvalidBase64url as error:
        _refuse(f"a segment is {error}")


def read_header(token: str, max_length: int = MAX_TOKEN_LENGTH, also_allowed: frozenset[str] = frozenset()) -> Header:
    """Read the protected header of a compact JWS. Nothing in it is proven.

    Raises:
        InvalidToken: longer than `max_length`; not three canonical base64url segments; a header that is not one JSON
            object, names an algorithm outside ALLOWED_ALGORITHMS, or has a member other than `alg`, `kid`, `typ` and
            those `also_allowed` (such as `crit`, `jku`, `jwk`, `x5u`, `x5c`, `b64`, `zip`).
    """
    if len(token) > max_length:
        _refuse(f"longer than {max_length // 1024} KiB")
    if _COMPACT.fullmatch(token) is None:
        _refuse("not a compact JWS")
    try:
        header = parse_json(_decode_segment(token.split(".", 1)[0]))
    except InvalidJson as error:
        _refuse(f"header: {error}")
    if not isinstance(header, dict):
        _refuse("header is not an object")
    others = frozenset(header) - _HEADER_MEMBERS
    if surplus := sorted(others - also_allowed):
        known = [name for name in surplus if name in {"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"}]
        _refuse(f"header member refused: {known[0] if known else 'unknown'}")
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(alg, str) or alg not in ALLOWED_ALGORITHMS:
        _refuse("algorithm not allowed")
    if "kid" in header and (not isinstance(kid, str) or not 0 < len(kid) <= MAX_KID):
        _refuse("kid is not a string of 1 to 128 characters")
    if "typ" in header and not isinstance(typ, str):
        _refuse("typ is not a string")
    return Header(alg=ALGORITHM_NAMES[alg], kid=kid, typ=typ, others=others)


def verify(token: str, header: Header, key: VerificationKey, claims: dict[str, Any] | None = None) -> dict[str, Any]:
    """Verify the signature with one key and return the claims set.

    `header` is the result of `read_header` for the same token. `claims` is the result of `read_unverified_claims`, if
    the caller has it: the payload is then not decoded again.

    Raises:
        InvalidToken: the key is for another algorithm, the signature does not match, or the payload is not one
            strict JSON object.
    """
    if header.alg != key.alg:
        _refuse("algorithm does not match the key")
    message, _, signature = token.rpartition(".")
    payload = _payload(token) if claims is None else b""
    if not _ALGORITHMS[key.alg].verify(message.encode(), _decode_segment(signature), key.key):
        raise InvalidToken("signature does not match", "signature")
    return _read_claims(payload) if claims is None else claims


def read_unverified_claims(token: str) -> dict[str, Any]:
    """Read the claims set of a token that `read_header` accepted, to look up a key. Nothing in it is proven.

    Raises:
        InvalidToken: the payload is not one strict JSON object.
    """
    return _read_claims(_payload(token))


def _payload(token: str) -> bytes:
    return _decode_segment(token.split(".")[1])


def _read_claims(payload: bytes) -> dict[str, Any]:
    try:
        claims = parse_json(payload)
    except InvalidJson as error:
        _refuse(f"claims: {error}")
    if not isinstance(claims, dict):
        _refuse("claims are not an object")
    return claims


def import_public_keys(members: Mapping[str, Any], kid: str | None, algs: Sequence[str]) -> list[VerificationKey]:
    """Return the key of a public JWK for each algorithm in `algs`. Without a `kid`, the thumbprint names it.

    Raises:
        InvalidKeySet: the members are not a key of their type.
    """
    try:
        key = _import({name: members[name] for name in _PUBLIC_MEMBERS if name in members})
        thumbprint = key.thumbprint()
    except (JoseError, ValueError, TypeError, AttributeError, KeyError):
        raise InvalidKeySet("its members are not a key of its type") from None
    name = thumbprint if kid is None else kid
    return [VerificationKey(kid=name, alg=alg, thumbprint=thumbprint, key=key) for alg in algs]


def _import(members: dict[str, Any]) -> Key:
    if members["kty"] != "RSA":
        return import_key(members)
    # The library reads the numbers digit by digit. A client has up to 8 keys, and a request that is refused should not
    # show by its time how many of them were loaded for it.
    numbers = {name: int.from_bytes(decode_base64url(members[name])) for name in ("n", "e")}
    # Some libraries add a zero octet (RFC 7518 6.3.1.1). With it, one key would have two thumbprints.
    shortest = {
        name: encode_base64url(number.to_bytes((number.bit_length() + 7) // 8)) for name, number in numbers.items()
    }
    return RSAKey(RSAPublicNumbers(**numbers).public_key(), members | shortest)
