"""Sets of public keys (RFC 7517 5): which keys verify signatures, and why each other one is ignored or refused."""

from collections.abc import Callable, Mapping
from typing import Any, Final

from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.jws import (
    ALGORITHM_NAMES,
    CURVES,
    KEY_TYPES,
    MAX_KID,
    InvalidKeySet,
    VerificationKey,
    import_public_keys,
)
from gatehouse.shared.protocol.public_keys import weakness
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.visible_text import is_visible

MAX_KEYS: Final = 64
"""Keys of one set, usable or not."""

_EXPECTED: Final = 'a JWK set is expected, {"keys": [...]}'

_PRIVATE_MEMBERS = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
_SIGNATURE_OPERATIONS = frozenset({"sign", "verify"})


class UnusableKey(ValueError):
    """A public JWK is malformed or weak. The message says why, without key material."""


class ForeignKey(UnusableKey):
    """A public JWK is for another purpose, or of a kind that is not supported. A set may contain it (RFC 7517 5)."""


def parse_key_set(
    document: bytes, note_unused: Callable[[str], object] = lambda _: None
) -> Mapping[str, VerificationKey]:
    """Read the JWK set of an issuer into usable keys by `kid`.

    Keys for other uses, of unknown kinds or too weak are not used; `note_unused` gets the name of each and why. A set
    with private or symmetric material, or with one `kid` twice, is refused as a whole, because its publisher made a
    serious mistake.

    Raises:
        InvalidKeySet: refused as above, not JSON, over 64 keys, or no usable key in it.
    """
    keys: dict[str, VerificationKey] = {}
    unusable: list[str] = []
    for name, jwk in read_public_jwks(document).items():
        try:
            key = _published_key(jwk)
        except UnusableKey as error:
            unusable.append(f"{name}: {error}")
            continue
        if keys.setdefault(key.kid, key) is not key:
            raise InvalidKeySet(f"the set holds one kid twice: {name}")
    if not keys:
        raise InvalidKeySet("; ".join(["the set holds no usable key", *(unusable or ["'keys' is empty"])]))
    for reason in unusable:
        note_unused(reason)
    return keys


def _published_key(jwk: Mapping[str, Any]) -> VerificationKey:
    """Return the key of a JWK that names itself and its algorithm. Raises UnusableKey."""
    for member in ("kid", "alg"):
        if jwk.get(member) is None:
            raise UnusableKey(f"it has no {member}")
    return verification_keys(jwk)[0]


def read_public_jwks(document: bytes, *, or_one: bool = False) -> dict[str, dict[str, Any]]:
    """Read the keys of a JWK set, by a name for messages, such as `key 2 (kid)`.

    Each is an object without private or symmetric key material (RFC 7518 6); nothing else is checked. With `or_one`,
    the document may also be one JWK.

    Raises:
        InvalidKeySet: not strict JSON, not an object with a list of at most 64 keys, or a key that is not such an
            object.
    """
    if not document.strip():
        raise InvalidKeySet(f"the document is empty; {_EXPECTED}")
    if document.lstrip().startswith(b"-----BEGIN "):
        raise InvalidKeySet(f"the document is in PEM; {_EXPECTED}")
    try:
        read = parse_json(document)
    except InvalidJson as error:
        raise InvalidKeySet(str(error)) from None
    if not isinstance(read, dict):
        raise InvalidKeySet(f"the document is not an object; {_EXPECTED}")
    jwks = _list_of_keys({"keys": [read], **read} if or_one else read)
    named: dict[str, dict[str, Any]] = {}
    for position, jwk in enumerate(jwks, 1):
        if not isinstance(jwk, dict):
            raise InvalidKeySet(f"key {position} is not an object")
        kid = jwk.get("kid")
        name = f"key {position} ({quoted(kid)})" if isinstance(kid, str) else f"key {position}"
        if jwk.get("kty") == "oct" or _PRIVATE_MEMBERS & jwk.keys():
            raise InvalidKeySet(f"{name} holds private or symmetric key material; give public keys only")
        named[name] = jwk
    return named


def _list_of_keys(document: Mapping[str, Any]) -> list[Any]:
    if "keys" not in document:
        found = "is one key, and not a set" if "kty" in document else "has no member 'keys'"
        raise InvalidKeySet(f"the document {found}; {_EXPECTED}")
    jwks = document["keys"]
    if not isinstance(jwks, list) or len(jwks) > MAX_KEYS:
        raise InvalidKeySet(f"'keys' is not a list of at most {MAX_KEYS} keys")
    return jwks


def verification_keys(jwk: Mapping[str, Any]) -> list[VerificationKey]:
    """Return one key for each algorithm that a public JWK may verify: its `alg`, or every algorithm of its type.

    A member that is null counts as absent. A missing `kid` becomes the thumbprint (RFC 7638). `Ed25519` (RFC 9864) and
    `EdDSA` are one algorithm.

    Raises:
        ForeignKey: for encryption, or with a type, curve or algorithm that is not supported.
        UnusableKey: malformed or weak.
    """
    members = {name: value for name, value in jwk.items() if value is not None}
    _check_purpose(members)
    algorithms = _algorithms(members)
    kid = members.get("kid")
    if kid is not None and not (isinstance(kid, str) and 0 < len(kid) <= MAX_KID and is_visible(kid)):
        raise UnusableKey(f"its kid is not a string of 1 to {MAX_KID} visible characters")
    if (reason := weakness(members)) is not None:
        raise UnusableKey(reason)
    try:
        return import_public_keys(members, kid, algorithms)
    except InvalidKeySet as error:
        raise UnusableKey(str(error)) from None


def _check_purpose(members: Mapping[str, Any]) -> None:
    use, operations = members.get("use"), members.get("key_ops")
    if use is not None and use != "sig":
        raise ForeignKey(f"its use is {quoted(str(use))}, not sig")
    if use is None and isinstance(operations, list) and not any(one in _SIGNATURE_OPERATIONS for one in operations):
        raise ForeignKey("its key_ops do not include verify")


def _algorithms(members: Mapping[str, Any]) -> list[str]:
    key_type, curve, algorithm = members.get("kty"), members.get("crv"), members.get("alg")
    if not isinstance(key_type, str):
        raise UnusableKey("it has no kty")
    known = [name for name, type_ in KEY_TYPES.items() if type_ == key_type]
    if not known:
        raise ForeignKey(f"its kty {quoted(key_type)} is not supported")
    if key_type in CURVES and curve != CURVES[key_type]:
        if not isinstance(curve, str):
            raise UnusableKey("it has no crv")
        raise ForeignKey(f"its curve {quoted(curve)} is not supported; for {key_type}, {CURVES[key_type]} is")
    if algorithm is None:
        return known
    if not isinstance(algorithm, str):
        raise UnusableKey("its alg is not a string")
    name = ALGORITHM_NAMES.get(algorithm)
    if name is None:
        raise ForeignKey(f"its alg {quoted(algorithm)} is not supported; {', '.join(ALGORITHM_NAMES)} are")
    if name not in known:
        raise UnusableKey(f"its alg {algorithm} is not for a key of type {key_type}")
    return [name]
