"""`private_key_jwt`: a client proves who it is by a signed assertion (RFC 7523 2.2, 3; draft-ietf-oauth-rfc7523bis).

The audience is this issuer alone. An assertion for several, or for the token endpoint of a server that the client
mistook for ours, could be used at another one than it was made for (CVE-2025-27370, CVE-2025-27371).
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from gatehouse.authserver.clients.registry import Client, ClientKey
from gatehouse.authserver.clients.request_credentials import AssertionCredentials
from gatehouse.authserver.credentials.lifecycle import by_last_use, inactive_reason
from gatehouse.authserver.db.replay import ReplayStore
from gatehouse.authserver.errors import OAuthError, invalid_client
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.clock import LEEWAY, Clock
from gatehouse.shared.protocol.jws import MAX_CLIENT_KEYS
from gatehouse.shared.protocol.numeric_date import is_numeric_date
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.remediation import client_command

MAX_LIFETIME = 300
"""Seconds from now that an assertion may be valid: so long, and the leeway, its use has to be remembered."""

MAX_JTI = 256
"""Characters."""

PURPOSE = "token_endpoint"

_TYPES = frozenset({None, "JWT", "client-authentication+jwt"})
"""Values of `typ`: none, the usual one, and that of rfc7523bis. An access token's is not among them."""


_NEW_ASSERTION = "Make a new assertion, with a new jti, for each request."
_CLOCKS = "Compare the client's clock with this server's."


def _refuse(reason: str, remediation: str) -> OAuthError:
    return invalid_client(f"assertion: {reason}", remediation)


def _use_the_newer(client_id: str) -> str:
    known = client_command("key list", client_id)
    return (
        f"Let the caller sign with a newer key of the client: {known}. To give it one: authserver client key replace."
    )


@dataclass(frozen=True, slots=True)
class Signed:
    """What the examination of an assertion's signature came to."""

    typ: str | None
    claims: Mapping[str, Any] | None
    """None when none of the client's keys signed it."""
    key: ClientKey | None = None
    """The one that did."""
    failure: str = ""


class AssertionVerifier:
    """Verifies assertions made for one issuer."""

    def __init__(self, issuer: str, clock: Clock, replay: ReplayStore) -> None:
        self._issuer = issuer
        self._clock = clock
        self._replay = replay
        self._decoys = {alg: jws.decoy_key(alg) for alg in jws.ALLOWED_ALGORITHMS}

    def examine(self, credentials: AssertionCredentials, keys: Sequence[ClientKey]) -> Signed:
        """Find the key that signed an assertion; with a `kid`, only keys of that name are tried.

        Where none did, decoys are tried, too: whoever is refused costs as many verifications as a client with the most
        keys, whether it is unknown, registered for another method, or has several keys (keycloak#26110).
        """
        header, now = credentials.header, self._clock()
        fitting = [
            (key, verification)
            for key in by_last_use(keys, now)
            for verification in key.verification
            if header.kid in {None, key.kid} and verification.alg == header.alg
        ]
        failure = "" if fitting else "the client has no key of that kid and algorithm"
        for key, verification in fitting[:MAX_CLIENT_KEYS]:
            try:
                return Signed(header.typ, jws.verify(credentials.assertion, header, verification), key)
            except jws.InvalidToken as error:
                failure = error.reason
        for _ in range(MAX_CLIENT_KEYS - len(fitting)):
            # Whatever the decoy says of an assertion, it is nobody's key.
            with suppress(jws.InvalidToken):
                jws.verify(credentials.assertion, header, self._decoys[header.alg])
        return Signed(header.typ, None, failure=failure)

    def accept(self, signed: Signed, client: Client) -> ClientKey:
        """Accept an examined assertion of a client, once. Return the key that signed it.

        Raises:
            OAuthError: `invalid_client`; the private reason names the failed check.
        """
        if signed.typ not in _TYPES:
            raise _refuse("typ is not that of a client assertion", "Set typ to JWT, or leave it out.")
        if signed.claims is None or signed.key is None:
            raise _refuse(signed.failure, client_command("show", client.client_id))
        if signed.key.lifetime.is_inactive(self._clock()):
            raise _refuse(
                f"the key {quoted(signed.key.kid)} {inactive_reason(signed.key.lifetime)}",
                _use_the_newer(client.client_id),
            )
        self._check_parties(signed.claims, client)
        expires_at = self._check_time(signed.claims)
        jti = signed.claims.get("jti")
        if not isinstance(jti, str) or not 0 < len(jti) <= MAX_JTI:
            raise _refuse(f"jti is not a string of 1 to {MAX_JTI} characters", _NEW_ASSERTION)
        # Last, because only an assertion that is good in all else may spend its jti.
        if not self._replay.spend(PURPOSE, client.client_id, jti, expires_at):
            raise _refuse("jti was used before", _NEW_ASSERTION)
        return signed.key

    def _check_parties(self, claims: Mapping[str, Any], client: Client) -> None:
        if claims.get("iss") != client.client_id or claims.get("sub") != client.client_id:
            raise _refuse("iss and sub are not both the client", f"Set iss and sub to {client.client_id}.")
        audiences = {self._issuer, f"{self._issuer}/"}
        if client.token_endpoint_audience:
            audiences.add(f"{self._issuer}/token")
        audience = claims.get("aud")
        if not isinstance(audience, str) or audience not in audiences:
            found = f"{quoted(str(audience))}, not this issuer as one string" if "aud" in claims else "missing"
            raise _refuse(f"aud is {found}", f"Set aud to {self._issuer}, as one string.")

    def _check_time(self, claims: Mapping[str, Any]) -> int:
        now = self._clock()
        expires_at = _numeric_date(claims, "exp")
        if expires_at is None:
            raise _refuse("exp is missing", f"Set exp, at most {MAX_LIFETIME} seconds from now.")
        if now >= expires_at + LEEWAY:
            raise _refuse(f"expired {math.floor(now - expires_at)} s ago", f"{_NEW_ASSERTION} {_CLOCKS}")
        if expires_at > now + MAX_LIFETIME + LEEWAY:
            remediation = f"Set exp at most {MAX_LIFETIME} seconds from now. {_CLOCKS}"
            raise _refuse(f"valid for longer than {MAX_LIFETIME} s from now", remediation)
        for name in ("iat", "nbf"):
            begin = _numeric_date(claims, name)
            if begin is not None and begin > now + LEEWAY:
                raise _refuse(f"{name} is in the future", _CLOCKS)
        return expires_at


def _numeric_date(claims: Mapping[str, Any], name: str) -> int | None:
    if name not in claims:
        return None
    value = claims[name]
    if not is_numeric_date(value):
        remediation = f"Set {name} to whole seconds since 1970-01-01T00:00:00Z, as a number."
        raise _refuse(f"{name} is not a whole number of seconds", remediation)
    return value
