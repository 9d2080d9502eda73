"""`private_key_jwt`: a client authenticates with a signed assertion (RFC 7523 2.2, 3; draft-ietf-oauth-rfc7523bis).

The audience is this issuer and nothing else. An assertion with several audiences, or for the token endpoint of another
server, could be replayed at a server that it was not made for (CVE-2025-27370, CVE-2025-27371). At this server, the
replay store accepts the `jti` of each assertion once.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gatehouse.authserver.clients.registry import Client, ClientKey
from gatehouse.authserver.clients.replay import NEW_ASSERTION, AcceptedAssertion
from gatehouse.authserver.credentials.client_jwks import MAX_CLIENT_KEYS, decoy_key
from gatehouse.authserver.credentials.lifecycle import by_last_use, inactive_reason
from gatehouse.authserver.errors import AuthFailure, OAuthError, invalid_client
from gatehouse.authserver.workloads.kinds import HEADER_MEMBERS
from gatehouse.authserver.workloads.platform_token import (
    JWT_SPIFFE,
    PlatformCredentials,
    Presented,
    is_platform_token,
)
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import is_fractional_date
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.remediation import client_command

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2."""

MAX_LIFETIME = 300
"""Seconds from now that an assertion may be valid. Its jti is remembered for this time and the leeway."""

MAX_JTI = 256
"""Characters."""

_TYPES = frozenset({None, "JWT", "client-authentication+jwt"})
"""Accepted values of `typ`: none, the usual one, and that of rfc7523bis; never that of an access token."""

_WELL_FORMED = "Send a compact JWT of at most 8 KiB, whose header holds alg, kid and typ only (RFC 7523 3)."
_CLOCKS = "Compare the client's clock with this server's."


@dataclass(frozen=True, slots=True)
class AssertionCredentials:
    """A signed assertion and what it claims. Nothing in it is proven yet."""

    client_id: str
    assertion: str = field(repr=False)
    header: jws.Header
    claims: dict[str, Any] = field(repr=False)
    method: str = "private_key_jwt"


def read_assertion(form: Mapping[str, str]) -> AssertionCredentials | PlatformCredentials:
    """Read the assertion of a request: one that the client signed, or a platform token.

    A client that signs its own assertions is named by their `sub` (RFC 7523 3, item 2).

    Raises:
        OAuthError: `invalid_client`: another assertion type, a malformed assertion, or one without `sub`.
    """
    assertion_type = form.get("client_assertion_type")
    if assertion_type not in {ASSERTION_TYPE, JWT_SPIFFE}:
        remediation = f"Send client_assertion_type={ASSERTION_TYPE}."
        raise invalid_client(AuthFailure.ASSERTION_MALFORMED, "client_assertion_type is not jwt-bearer", remediation)
    assertion = form.get("client_assertion", "")
    header, claims = read_jwt(assertion)
    if is_platform_token(claims, assertion_type):
        presented = Presented.SPIFFE_ASSERTION if assertion_type == JWT_SPIFFE else Presented.CLIENT_ASSERTION
        return PlatformCredentials(assertion, header, claims, presented, form.get("client_id", ""))
    if header.others:
        raise _refuse("header member refused: unknown", _WELL_FORMED, AuthFailure.ASSERTION_MALFORMED)
    subject = claims.get("sub")
    if not isinstance(subject, str) or not subject:
        raise _refuse("sub is missing", "Set iss and sub to the client_id.")
    return AssertionCredentials(subject, assertion, header, claims)


def read_jwt(assertion: str) -> tuple[jws.Header, dict[str, Any]]:
    """Read an assertion, of a client or of a platform. Raises OAuthError: `invalid_client`: it is malformed."""
    try:
        return jws.read_header(assertion, also_allowed=HEADER_MEMBERS), jws.read_unverified_claims(assertion)
    except jws.InvalidToken as error:
        raise _refuse(error.reason, _WELL_FORMED, AuthFailure.ASSERTION_MALFORMED) from None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key to verify an assertion with."""

    verification: jws.VerificationKey
    key: ClientKey | None
    """The key of the client; None for a decoy, which belongs to no client."""


@dataclass(frozen=True, slots=True)
class SignatureResult:
    """Which of a client's keys signed an assertion."""

    assertion: AssertionCredentials
    key: ClientKey | None
    """None if no key of the client did."""
    failure: str = ""


def verify_signature(
    assertion: AssertionCredentials, candidates: Sequence[Candidate], failure: str = ""
) -> SignatureResult:
    """Find the key of the client that signed an assertion. `failure` is that of the candidates tried before."""
    if candidates[0].key is None:
        failure = failure or "the client has no key of that kid and algorithm"
    for candidate in candidates:
        try:
            jws.verify(assertion.assertion, assertion.header, candidate.verification, assertion.claims)
        except jws.InvalidToken as error:
            failure = failure or error.reason
        else:
            # A signature that matches a decoy proves nothing.
            if candidate.key is not None:
                return SignatureResult(assertion, candidate.key)
    return SignatureResult(assertion, None, failure)


@dataclass(frozen=True, slots=True)
class AssertionVerifier:
    """Verifies assertions made for one issuer. Pure: no I/O."""

    issuer: str
    decoys: dict[str, jws.VerificationKey] = field(
        default_factory=lambda: {alg: decoy_key(alg) for alg in jws.KEY_TYPES}
    )
    """For each algorithm, a key that belongs to no client."""

    def candidates(self, assertion: AssertionCredentials, keys: Sequence[ClientKey], now: float) -> list[Candidate]:
        """Return MAX_CLIENT_KEYS keys to verify an assertion with, the most likely first.

        If the assertion has a `kid`, only keys with that `kid` are among them. Decoys make up the number. A refused
        request then costs as many verifications as a client with the most keys, whether the client is unknown,
        registered for another method, or has several keys (keycloak#26110).
        """
        header = assertion.header
        fitting = [
            Candidate(verification, key)
            for key in by_last_use(keys, now)
            for verification in key.verification
            if header.kid in {None, key.kid} and verification.alg == header.alg
        ]
        decoys = [Candidate(self.decoys[header.alg], None)] * MAX_CLIENT_KEYS
        return [*fitting, *decoys][:MAX_CLIENT_KEYS]

    def accept(self, signed: SignatureResult, client: Client, now: float) -> tuple[ClientKey, AcceptedAssertion]:
        """Accept an assertion of a client, unless it was used before. Return it with the key that signed it.

        Raises:
            OAuthError: `invalid_client`; the private reason names the failed check.
        """
        if signed.assertion.header.typ not in _TYPES:
            raise _refuse("typ is not that of a client assertion", "Set typ to JWT, or omit it.")
        key, claims = signed.key, signed.assertion.claims
        if key is None:
            remediation = client_command("show", client.client_id)
            raise _refuse(signed.failure, remediation, AuthFailure.ASSERTION_SIGNATURE)
        if key.lifetime.is_inactive(now):
            reason = f"the key {quoted(key.kid)} {inactive_reason(key.lifetime)}"
            raise _refuse(reason, _use_newer_key(client.client_id), AuthFailure.INACTIVE_KEY)
        self._check_parties(claims, client)
        expires_at = _check_time(claims, now)
        jti = claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI:
            raise _refuse(f"jti is not a string of 1 to {MAX_JTI} characters", NEW_ASSERTION)
        return key, AcceptedAssertion(client.client_id, hashlib.sha256(jti.encode()).digest(), expires_at)

    def _check_parties(self, claims: Mapping[str, Any], client: Client) -> None:
        if claims.get("iss") != client.client_id or claims.get("sub") != client.client_id:
            raise _refuse("iss and sub are not both the client", f"Set iss and sub to {client.client_id}.")
        audiences = {self.issuer, f"{self.issuer}/"}
        if client.token_endpoint_audience:
            audiences.add(f"{self.issuer}/token")
        audience = claims.get("aud")
        if not isinstance(audience, str) or audience not in audiences:
            found = f"{quoted(str(audience))}, not this issuer as one string" if "aud" in claims else "missing"
            raise _refuse(f"aud is {found}", f"Set aud to {self.issuer}, as one string.")


def _check_time(claims: Mapping[str, Any], now: float) -> float:
    """Check `exp`, `iat` and `nbf`, which may have a fraction (RFC 7519 2). Return `exp`."""
    expires_at = _numeric_date(claims, "exp")
    if expires_at is None:
        raise _refuse("exp is missing", f"Set exp, at most {MAX_LIFETIME} seconds from now.")
    if now >= expires_at + LEEWAY:
        raise _refuse(f"expired {math.floor(now - expires_at)} s ago", f"{NEW_ASSERTION} {_CLOCKS}")
    if expires_at > now + MAX_LIFETIME + LEEWAY:
        remediation = f"Set exp at most {MAX_LIFETIME} seconds from now. {_CLOCKS}"
        raise _refuse(f"valid for longer than {MAX_LIFETIME} s from now", remediation)
    for name in ("iat", "nbf"):
        begin = _numeric_date(claims, name)
        if begin is not None and begin > now + LEEWAY:
            raise _refuse(f"{name} is in the future", _CLOCKS)
    return expires_at


def _numeric_date(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if not is_fractional_date(value):
        raise _refuse(f"{name} is not a number of seconds", f"Set {name} to seconds since 1970-01-01T00:00:00Z.")
    return value


def _use_newer_key(client_id: str) -> str:
    known = client_command("key list", client_id)
    return f"Sign with a newer key of the client: {known}. To register one: authserver client key rotate."


def _refuse(reason: str, remediation: str, cause: AuthFailure = AuthFailure.ASSERTION_CLAIMS) -> OAuthError:
    return invalid_client(cause, f"assertion: {reason}", remediation)
