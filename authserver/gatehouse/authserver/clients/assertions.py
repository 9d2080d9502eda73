"""`private_key_jwt`: a client authenticates with a signed assertion (RFC 7523 2.2, 3; draft-ietf-oauth-rfc7523bis).

The audience is this issuer and nothing else. An assertion with several audiences, or for the token endpoint of another
server, could be replayed at a server that it was not made for (CVE-2025-27370, CVE-2025-27371). At this server, the
replay store accepts the `jti` of each assertion once.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from sqlalchemy import Connection, delete

from gatehouse.authserver.clients.registry import Client, ClientKey
from gatehouse.authserver.credentials.client_jwks import MAX_CLIENT_KEYS, decoy_key
from gatehouse.authserver.credentials.lifecycle import by_last_use, inactive_reason
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.group_commit import GroupCommit, WriteAgain
from gatehouse.authserver.db.models import SpentAssertionRow
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
from gatehouse.shared.protocol.clock import LEEWAY, Clock
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.service.database import placeholder
from gatehouse.shared.service.remediation import client_command

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
"""RFC 7523 2.2."""

MAX_LIFETIME = 300
"""Seconds from now that an assertion may be valid. Its jti is remembered for this time and the leeway."""

MAX_JTI = 256
"""Characters."""

CLIENT_ASSERTION = "token_endpoint"
"""The purpose that the assertion of a client is spent for."""

_INSERT_UNUSED = (
    "INSERT INTO spent_assertion (purpose, client_id, jti_digest, expires_at) VALUES {} ON CONFLICT DO NOTHING"
)

_TYPES = frozenset({None, "JWT", "client-authentication+jwt"})
"""Accepted values of `typ`: none, the usual one, and that of rfc7523bis; never that of an access token."""

_WELL_FORMED = "Send a compact JWT of at most 8 KiB, whose header holds alg, kid and typ only (RFC 7523 3)."
_NEW_ASSERTION = "Make a new assertion, with a new jti, for each request."
_ASK_AGAIN = (
    "Request a new token from the platform for each token request. If the platform hands out the same one again, add"
    " the trusted issuer with --one-time no."
)
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
    # A client is both the issuer and the subject of what it signs itself (RFC 7523 3).
    is_own = assertion_type == ASSERTION_TYPE and claims.get("iss") == claims.get("sub")
    if not is_own and is_platform_token(claims, assertion_type):
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


@dataclass(frozen=True, slots=True, order=True)
class AcceptedAssertion:
    """A valid assertion that stands for a client, if it is unused."""

    client_id: str
    jti_digest: bytes
    """SHA-256 of what identifies it: its `jti`, or what the issuer of a platform token signed."""
    expires_at: float
    """Its `exp`, in seconds since the epoch."""
    purpose: str = CLIENT_ASSERTION
    """What it is spent for; part of the primary key in the database."""


class ReplayStore:
    """Marks each `jti` as used with one INSERT: of two concurrent uses, on any node, one succeeds.

    Only the `jti` of an AcceptedAssertion is marked: otherwise anyone could use up the identifiers of another client.
    Its row is committed before the answer leaves. If the answer is lost, the assertion is spent all the same, and the
    client has to make a new one.
    """

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._group = GroupCommit(database, _insert_unused, name="spent assertions")

    def spend_and_wait(self, accepted: AcceptedAssertion) -> None:
        """Mark the `jti` of an assertion as used. Not for use on an event loop.

        Raises:
            OAuthError: `invalid_client`: it was used before.
            DeadlineExceeded, SQLAlchemyError: it may be used now, or not.
        """
        _require_unused(accepted, is_unused=self._group.write_and_wait(accepted))

    async def spend_async(self, accepted: AcceptedAssertion) -> None:
        """Mark the `jti` of an assertion as used, without blocking the event loop. Raises as `spend_and_wait`."""
        _require_unused(accepted, is_unused=await self._group.write_async(accepted))

    def check_unused(self, accepted: AcceptedAssertion) -> None:
        """Refuse an assertion whose `jti` was used before, and leave it unused otherwise. Not for use on an event loop.

        Raises:
            OAuthError: `invalid_client`: it was used before.
            SQLAlchemyError: the database is unavailable.
        """
        key = (accepted.purpose, accepted.client_id, accepted.jti_digest)
        with self._database.read() as session:
            _require_unused(accepted, is_unused=session.get(SpentAssertionRow, key) is None)

    def prune(self) -> None:
        """Delete the identifiers of expired assertions. Raises SQLAlchemyError."""
        with self._database.write() as session:
            session.execute(delete(SpentAssertionRow).where(SpentAssertionRow.expires_at < int(self._clock())))

    def close(self) -> None:
        """Write what requests wait for, and stop."""
        self._group.close()


def _insert_unused(connection: Connection, assertions: Sequence[AcceptedAssertion]) -> Sequence[bool]:
    """Insert assertions. Return, for each, whether it was unused."""
    statement = _INSERT_UNUSED.format(_row(connection))
    inserted = connection.exec_driver_sql(statement, _values(assertions)).rowcount
    if inserted < len(assertions) > 1:
        raise WriteAgain(_insert_and_compare)
    return [inserted == len(assertions)] * len(assertions)


def _insert_and_compare(connection: Connection, assertions: Sequence[AcceptedAssertion]) -> Sequence[bool]:
    """Do the same with one statement that says which were unused. It takes longer.

    A client that repeats assertions costs the others of its group one more transaction.
    """
    values = _values(assertions)
    statement = (
        f"{_INSERT_UNUSED.format(', '.join([_row(connection)] * len(values)))} RETURNING purpose, client_id, jti_digest"
    )
    inserted = connection.exec_driver_sql(statement, tuple(chain.from_iterable(values)))
    unused = {tuple(row) for row in inserted}
    results = []
    for accepted in assertions:
        key = accepted.purpose, accepted.client_id, accepted.jti_digest
        results.append(key in unused)
        # A group may hold the same assertion twice.
        unused.discard(key)
    return results


def _row(connection: Connection) -> str:
    return f"({', '.join([placeholder(connection.dialect)] * 4)})"


def _values(assertions: Sequence[AcceptedAssertion]) -> list[tuple[Any, ...]]:
    # An assertion is accepted until its leeway ends, and by a node with a slower clock until another one has ended.
    return [
        (accepted.purpose, accepted.client_id, accepted.jti_digest, math.ceil(accepted.expires_at) + 2 * LEEWAY)
        # The order of all processes: an INSERT waits for another transaction that inserts the same key.
        for accepted in sorted(assertions)
    ]


def _require_unused(accepted: AcceptedAssertion, *, is_unused: bool) -> None:
    if is_unused:
        return
    if accepted.purpose == CLIENT_ASSERTION:
        raise _refuse("jti was used before", _NEW_ASSERTION, AuthFailure.ASSERTION_REPLAYED)
    raise invalid_client(AuthFailure.ASSERTION_REPLAYED, "platform token: it was used before", _ASK_AGAIN)


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
            raise _refuse(f"jti is not a string of 1 to {MAX_JTI} characters", _NEW_ASSERTION)
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
        raise _refuse(f"expired {math.floor(now - expires_at)} s ago", f"{_NEW_ASSERTION} {_CLOCKS}")
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
