"""JSON Web Signature: the only module that uses joserfc (RFC 7515, 7517, 7518, 8037, 8725).

`SigningKey` signs. Verification takes three steps: `read_header`, the caller's choice of a key, and `verify`. Each
refuses input that it cannot prove valid. No part of a token is decoded before its length and alphabet are checked, and
no header member can point at a key: `alg`, `kid` and `typ` are the only members allowed.
"""

import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NoReturn, TypeGuard, get_args

from joserfc import jws
from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey, import_key

from gatehouse.shared.protocol import base64url, strict_json
from gatehouse.shared.protocol.claims import MAX_TOKEN_LENGTH
from gatehouse.shared.protocol.public_keys import MIN_RSA_BITS, is_strong

KEY_TYPES = {"ES256": "EC", "RS256": "RSA", "PS256": "RSA", "EdDSA": "OKP"}
"""The JWK `kty` of each algorithm's keys."""

ALLOWED_ALGORITHMS = frozenset(KEY_TYPES)
"""Every algorithm that either server signs with or accepts. All are asymmetric (RFC 8725 3.1, 3.2)."""

SigningAlgorithm = Literal["ES256", "RS256", "EdDSA"]
SIGNING_ALGORITHMS: tuple[SigningAlgorithm, ...] = get_args(SigningAlgorithm)
"""What the authorization server can sign access tokens with."""

# RFC 9864 renames "EdDSA" to "Ed25519". Resource servers know the old name.
warnings.filterwarnings("ignore", message="EdDSA is deprecated", category=SecurityWarning)

_CURVES = {"EC": "P-256", "OKP": "Ed25519"}
_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+", re.ASCII)
_HEADER_MEMBERS = frozenset({"alg", "kid", "typ"})
_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_MAX_KEYS = 64
_MAX_KID = 128

AsymmetricKey = ECKey | OKPKey | RSAKey
"""A key to sign with. Its public half can be published."""


class InvalidToken(Exception):
    """The token is malformed or not validly signed. `reason` is for the operator, never for the client."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InvalidKeySet(ValueError):
    """The document is not a usable key set (RFC 7517 5). The message holds no key material."""


@dataclass(frozen=True, slots=True)
class Header:
    """The protected header of a JWS, not yet verified."""

    alg: str
    kid: str | None
    typ: str | None


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
        if isinstance(key, OctKey) or key.key_type != KEY_TYPES.get(alg) or not key.is_private:
            raise InvalidKeySet(f"not a private key for {alg}")
        return cls._named(alg, key)

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
        header = {"alg": self.alg, "kid": self.kid, "typ": typ}
        payload = json.dumps(claims, separators=(",", ":")).encode()
        return jws.serialize_compact(header, payload, self.key, algorithms=[self.alg])


def _refuse(reason: str) -> NoReturn:
    raise InvalidToken(reason)


def _decode_segment(segment: str) -> bytes:
    try:
        return base64url.decode(segment)
    except base64url.InvalidBase64url as error:
        _refuse(f"a segment is {error}")


def read_header(token: str, max_length: int = MAX_TOKEN_LENGTH) -> Header:
    """Read the protected header of a compact JWS. Nothing in it is proven.

    Raises:
        InvalidToken: longer than `max_length`; not three canonical base64url segments; a header that is not one JSON
            object, names an algorithm outside ALLOWED_ALGORITHMS, or has a member other than `alg`, `kid` and `typ`
            (such as `crit`, `jku`, `jwk`, `x5u`, `x5c`, `b64`, `zip`).
    """
    if len(token) > max_length:
        _refuse(f"longer than {max_length // 1024} KiB")
    if _COMPACT.fullmatch(token) is None:
        _refuse("not a compact JWS")
    try:
        header = strict_json.loads(_decode_segment(token.split(".", 1)[0]))
    except strict_json.InvalidJson as error:
        _refuse(f"header: {error}")
    if not isinstance(header, dict):
        _refuse("header is not an object")
    if surplus := sorted(name for name in header if name not in _HEADER_MEMBERS):
        known = [name for name in surplus if name in {"crit", "jku", "jwk", "x5u", "x5c", "b64", "zip"}]
        _refuse(f"header member refused: {known[0] if known else 'unknown'}")
    alg, kid, typ = header.get("alg"), header.get("kid"), header.get("typ")
    if not isinstance(alg, str) or alg not in ALLOWED_ALGORITHMS:
        _refuse("algorithm not allowed")
    if kid is not None and (not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID):
        _refuse("kid is not a string of 1 to 128 characters")
    if typ is not None and not isinstance(typ, str):
        _refuse("typ is not a string")
    return Header(alg=alg, kid=kid, typ=typ)


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
    _, payload, signature = token.split(".")
    if claims is None:
        _decode_segment(payload)
    _decode_segment(signature)
    try:
        jws.deserialize_compact(token, key.key, algorithms=[key.alg])
    except (JoseError, ValueError, TypeError):
        _refuse("signature does not match")
    return read_unverified_claims(token) if claims is None else claims


def read_unverified_claims(token: str) -> dict[str, Any]:
    """Read the claims set of a token that `read_header` accepted, to look up a key. Nothing in it is proven.

    Raises:
        InvalidToken: the payload is not one strict JSON object.
    """
    try:
        claims = strict_json.loads(_decode_segment(token.split(".")[1]))
    except strict_json.InvalidJson as error:
        _refuse(f"claims: {error}")
    if not isinstance(claims, dict):
        _refuse("claims are not an object")
    return claims


def parse_key_set(document: bytes) -> Mapping[str, VerificationKey]:
    """Read a JWK set (RFC 7517 5) into usable keys by `kid`.

    Keys for other uses or unknown algorithms are ignored, as RFC 7517 5 requires. A set with private or symmetric
    material, or with one `kid` twice, is refused as a whole, because its publisher made a serious mistake.

    Raises:
        InvalidKeySet: refused as above, not JSON, over 64 keys, or no usable key in it.
    """
    try:
        key_set = strict_json.loads(document)
    except strict_json.InvalidJson as error:
        raise InvalidKeySet(str(error)) from None
    jwks = key_set.get("keys") if isinstance(key_set, dict) else None
    if not isinstance(jwks, list) or len(jwks) > _MAX_KEYS:
        raise InvalidKeySet(f"'keys' is not a list of at most {_MAX_KEYS} keys")
    keys: dict[str, VerificationKey] = {}
    for jwk in jwks:
        if not is_public_jwk(jwk):
            raise InvalidKeySet("the set holds private or symmetric key material")
        key = verification_key(jwk)
        if key is not None and keys.setdefault(key.kid, key) is not key:
            raise InvalidKeySet("the set holds one kid twice")
    if not keys:
        raise InvalidKeySet("the set holds no usable key")
    return keys


def is_public_jwk(jwk: Any) -> TypeGuard[dict[str, Any]]:
    """Tell whether a JSON value is an object without private or symmetric key material (RFC 7518 6)."""
    return isinstance(jwk, dict) and jwk.get("kty") != "oct" and not _PRIVATE_MEMBERS & jwk.keys()


def verification_key(jwk: dict[str, Any]) -> VerificationKey | None:
    """Return the key of a public JWK; None unless it names an allowed algorithm and a strong key for it."""
    kid, alg, key_type = jwk.get("kid"), jwk.get("alg"), jwk.get("kty")
    if not isinstance(kid, str) or not 0 < len(kid) <= _MAX_KID or not isinstance(alg, str):
        return None
    if alg not in ALLOWED_ALGORITHMS or key_type != KEY_TYPES[alg] or jwk.get("use", "sig") != "sig":
        return None
    if key_type in _CURVES and jwk.get("crv") != _CURVES[key_type]:
        return None
    if not is_strong(jwk):
        return None
    try:
        key = import_key(jwk)
        thumbprint = key.thumbprint()
    except (JoseError, ValueError, TypeError, AttributeError):
        return None
    return VerificationKey(kid=kid, alg=alg, thumbprint=thumbprint, key=key)
