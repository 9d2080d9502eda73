"""Verifies platform tokens: which trusted issuer signed one, and whether it is made for this server. Pure: no I/O."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gatehouse.authserver.clients.assertions import ASSERTION_TYPE
from gatehouse.authserver.credentials.client_jwks import decoy_key
from gatehouse.authserver.errors import AuthFailure
from gatehouse.authserver.workloads.key_state import give_keys_command, last_failure
from gatehouse.authserver.workloads.platform_token import PlatformCredentials, Presented
from gatehouse.authserver.workloads.registry import MAX_SHARED, TrustedIssuer, TrustedIssuers, find_key
from gatehouse.authserver.workloads.rules import described
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import is_fractional_date
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.redaction import as_word, quoted

_LIST = "authserver issuer list"
_SHOW = "authserver issuer show {}"

_MAX_AUDIENCES = 3
"""Audiences of one token that a message names."""


class WorkloadRefused(Exception):
    """A platform token is refused. The reason and the remediation are for the operator."""

    def __init__(
        self,
        reason: str,
        remediation: str,
        cause: AuthFailure = AuthFailure.ASSERTION_CLAIMS,
        *,
        temporary: bool = False,
    ) -> None:
        """Refuse a token; with `temporary`, it may be accepted if it is sent again."""
        super().__init__(reason)
        self.reason = f"platform token: {reason}"
        self.remediation = remediation
        self.cause = cause
        self.temporary = temporary


@dataclass(frozen=True, slots=True)
class Candidate:
    """A key to verify a platform token with."""

    verification: jws.VerificationKey
    issuer: TrustedIssuer | None
    """Whose key it is; None for a decoy."""


@dataclass(frozen=True, slots=True)
class Verified:
    """The trusted issuers among the candidates that signed a token, and why others did not."""

    issuers: tuple[TrustedIssuer, ...] = ()
    failure: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload whose platform token passed every check. Only `WorkloadVerifier.accept` creates one."""

    issuer: TrustedIssuer
    subject: str
    claims: Mapping[str, Any] = field(repr=False)
    expires_at: float
    """Of its platform token, in seconds since the epoch."""


def verify_signature(
    credentials: PlatformCredentials, candidates: Sequence[Candidate], before: Verified = Verified()
) -> Verified:
    """Find the issuers that signed a token. `before` is the result of the candidates tried before."""
    issuers, failure = list(before.issuers), before.failure
    for candidate in candidates:
        if candidate.issuer is None and issuers:
            break
        try:
            jws.verify(credentials.token, credentials.header, candidate.verification, credentials.claims)
        except jws.InvalidToken as error:
            failure = failure or error.reason
        else:
            # A signature that matches a decoy proves nothing.
            if candidate.issuer is not None:
                issuers.append(candidate.issuer)
    return Verified(tuple(issuers), failure)


@dataclass(frozen=True, slots=True)
class WorkloadVerifier:
    """Verifies platform tokens made for one authorization server."""

    issuer: str
    """The identifier of this server."""
    decoys: dict[str, jws.VerificationKey] = field(
        default_factory=lambda: {alg: decoy_key(alg) for alg in jws.KEY_TYPES}
    )
    """For each algorithm, a key that belongs to no issuer."""

    def candidates(self, credentials: PlatformCredentials, issuers: TrustedIssuers, now: float) -> list[Candidate]:
        """Return the keys to verify a token with: those with its `kid`, of every trusted issuer with its `iss`.

        Decoys make up MAX_SHARED, so that a token of an unknown issuer takes as long as one with a wrong signature.
        """
        header = credentials.header
        fitting = [
            Candidate(key, issuer)
            for issuer in issuers.possible(credentials.issuer, credentials.trust_domain)
            if header.alg in issuer.algorithms
            and (key := find_key(issuer.usable_keys(now), header.kid, header.alg)) is not None
        ]
        decoys = [Candidate(self.decoys[header.alg], None)] * MAX_SHARED
        return [*fitting, *decoys][: max(MAX_SHARED, len(fitting))]

    def accept(
        self, credentials: PlatformCredentials, verified: Verified, issuers: TrustedIssuers, now: float
    ) -> Workload:
        """Return the workload of a token after every check but one: whether a token for one use was used before.

        Raises:
            WorkloadRefused: the reason names the failed check.
        """
        issuer = self.signer(credentials, verified, issuers, now)
        check_header(credentials, issuer)
        subject = check_subject(credentials)
        self.check_audience(credentials, issuer)
        return Workload(issuer, subject, credentials.claims, check_time(credentials.claims, issuer, now))

    def signer(
        self, credentials: PlatformCredentials, verified: Verified, issuers: TrustedIssuers, now: float
    ) -> TrustedIssuer:
        """Return the one trusted issuer that signed a token. Raises WorkloadRefused."""
        if len(verified.issuers) == 1:
            return verified.issuers[0]
        if verified.issuers:
            names = ", ".join(issuer.name for issuer in verified.issuers)
            raise WorkloadRefused(f"several trusted issuers signed it: {names}", _LIST, AuthFailure.ASSERTION_SIGNATURE)
        named = issuers.possible(credentials.issuer, credentials.trust_domain)
        if not named:
            raise WorkloadRefused(
                f"no trusted issuer has the iss {as_word(quoted(credentials.issuer))}",
                _LIST,
                AuthFailure.UNTRUSTED_ISSUER,
            )
        header = credentials.header
        if not any(header.alg in issuer.algorithms for issuer in named):
            reason = f"the issuer may not use the algorithm {header.alg}"
        elif not any(issuer.usable_keys(now) for issuer in named):
            raise _no_key("no key of the issuer is known, or the key set is too old", named, now)
        elif not any(find_key(issuer.usable_keys(now), header.kid, header.alg) for issuer in named):
            reason = f"the issuer has no key with the kid {as_word(quoted(header.kid or ''))} for {header.alg}"
            raise _no_key(reason, named, now)
        else:
            reason = verified.failure
        raise WorkloadRefused(reason, _SHOW.format(named[0].name), AuthFailure.ASSERTION_SIGNATURE)

    def check_audience(self, credentials: PlatformCredentials, issuer: TrustedIssuer) -> None:
        """Require one audience, as a text or as the only element of an array (RFC 7519 4.1.3).

        With several, each of the servers that it is for could use the token at the others.

        Raises:
            WorkloadRefused: it has another one, or several.
        """
        audience = credentials.claims.get("aud")
        if isinstance(audience, list) and len(audience) == 1:
            audience = audience[0]
        expected = self.audiences(issuer, credentials.presented)
        if not isinstance(audience, str) or audience not in expected:
            slash = ", without the slash at its end" if audience == f"{expected[0]}/" else ""
            raise WorkloadRefused(
                _wrong_audience(credentials.claims, expected[0]),
                f"Request a token for the audience {expected[0]} from the platform{slash}.",
            )

    def audiences(self, issuer: TrustedIssuer, presented: Presented) -> list[str]:
        """Return the audiences of which a token must have one; the first is the one to request."""
        if issuer.audience is not None:
            return [issuer.audience]
        if presented is not Presented.GRANT:
            return [self.issuer]
        # SDKs write the issuer with a slash; the draft of SEP-1933 names the token endpoint.
        token_endpoint = [f"{self.issuer}/token"] if issuer.token_endpoint_audience else []
        return [self.issuer, f"{self.issuer}/", *token_endpoint]


def _no_key(reason: str, issuers: Sequence[TrustedIssuer], now: float) -> WorkloadRefused:
    """Return the refusal of a token whose key is not among those of its issuers, with why their last fetch failed."""
    fetched = [issuer for issuer in issuers if issuer.location.is_fetched]
    failures = [f"{issuer.name}: {failed}" for issuer in fetched if (failed := last_failure(issuer, now)) is not None]
    # Keys that an admin gave are not renewed by a fetch.
    remediation = _SHOW.format(fetched[0].name) if fetched else " or ".join(map(give_keys_command, issuers))
    return WorkloadRefused("; ".join([reason, *failures]), remediation, AuthFailure.ASSERTION_SIGNATURE)


def _wrong_audience(claims: Mapping[str, Any], expected: str) -> str:
    """Say which `aud` a token has in place of the expected one."""
    if "aud" not in claims:
        return f"aud is missing; it must be {expected} alone"
    audience = claims["aud"]
    audiences = audience if isinstance(audience, list) and audience else [audience]
    shown = [described(one) for one in audiences[:_MAX_AUDIENCES]]
    if (more := len(audiences) - len(shown)) > 0:
        shown.append(f"{more} more")
    return f"aud is {' and '.join(shown)}, not {expected} alone"


def check_header(credentials: PlatformCredentials, issuer: TrustedIssuer) -> None:
    """Check what the header says besides the key. Raises WorkloadRefused."""
    kind, header = issuer.kind, credentials.header
    if surplus := sorted(header.others - kind.header_members):
        raise WorkloadRefused(f"header member refused: {surplus[0]}", _SHOW.format(issuer.name))
    if header.typ not in kind.types:
        raise WorkloadRefused(
            f"typ is {as_word(quoted(str(header.typ)))}, not that of a platform token",
            "Present the token of the platform itself, not one that was made from it.",
        )
    if credentials.presented is Presented.SPIFFE_ASSERTION and kind.name != "spiffe":
        raise WorkloadRefused(
            "client_assertion_type is for SPIFFE, and the issuer is of another kind",
            f"Send client_assertion_type={ASSERTION_TYPE}.",
        )


def check_subject(credentials: PlatformCredentials) -> str:
    """Return the `sub`, if the token alone proves it.

    Raises:
        WorkloadRefused: it is missing, or the holder would have to prove a key as well (RFC 7800).
    """
    if not credentials.subject:
        raise WorkloadRefused("sub is missing", "Request a token with a subject from the platform.")
    if "cnf" in credentials.claims:
        raise WorkloadRefused("it is bound to a key (cnf)", "Request a bearer token from the platform.")
    return credentials.subject


def check_time(claims: Mapping[str, Any], issuer: TrustedIssuer, now: float) -> float:
    """Check `exp`, and `nbf` and `iat` where they are. Return `exp`. Raises WorkloadRefused."""
    expires_at = _numeric_date(claims, "exp")
    if expires_at is None:
        raise WorkloadRefused("exp is missing", "Request a token that expires from the platform.")
    if now >= expires_at + LEEWAY:
        raise WorkloadRefused(
            f"expired {math.floor(now - expires_at)} s ago",
            "Read the token again for each request: the platform replaces it before it expires.",
        )
    if expires_at > now + issuer.max_lifetime + LEEWAY:
        raise WorkloadRefused(
            f"valid for longer than {issuer.max_lifetime} s from now",
            "Request a shorter token from the platform, or accept longer ones:"
            f" authserver issuer update {issuer.name} --max-lifetime SECONDS",
        )
    for name in ("iat", "nbf"):
        begin = _numeric_date(claims, name)
        # kubelet's tokens can be a little ahead.
        if begin is not None and begin > now + LEEWAY:
            raise WorkloadRefused(f"{name} is in the future", "Compare the platform's clock with this server's.")
    return expires_at


def _numeric_date(claims: Mapping[str, Any], name: str) -> float | None:
    if name not in claims:
        return None
    value = claims[name]
    if not is_fractional_date(value):
        raise WorkloadRefused(f"{name} is not a number of seconds", "Report it to the operator of the platform.")
    return value
