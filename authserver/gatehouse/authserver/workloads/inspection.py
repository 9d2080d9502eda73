"""Explains which client a platform token stands for, or why it is refused, check by check."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client
from gatehouse.authserver.workloads.authentication import token_digest
from gatehouse.authserver.workloads.key_state import describe_age, key_age, last_failure
from gatehouse.authserver.workloads.kinds import HEADER_MEMBERS
from gatehouse.authserver.workloads.platform_token import (
    PlatformCredentials,
    Presented,
    is_platform_token,
    trust_domain,
)
from gatehouse.authserver.workloads.presets import PRESETS
from gatehouse.authserver.workloads.registry import TrustedIssuer, TrustedIssuers
from gatehouse.authserver.workloads.rule_report import rules_at_fault, shown_claim, shown_conditions
from gatehouse.authserver.workloads.rules import NoClient, Rule, find_claim, matching_rule
from gatehouse.authserver.workloads.verifier import (
    WorkloadRefused,
    WorkloadVerifier,
    check_header,
    check_subject,
    check_time,
    verify_signature,
)
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import ACCESS_TOKEN_TYPE
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.redaction import as_word, quoted
from gatehouse.shared.service.checks import Check, passed, run_checks

_FORMS: Final = {
    Presented.CLIENT_ASSERTION: "client_assertion",
    Presented.GRANT: "assertion of the JWT bearer grant",
}
"""What each way to present a token is called. That of SPIFFE is checked like any client assertion."""


class _Failed(Exception):
    """A check of the inspection failed."""


def looks_like_platform_token(token: str, issuer: str, trusted: Sequence[TrustedIssuer]) -> bool:
    """Tell a platform token from an access token of this server, the `issuer`, by `iss` and `typ`.

    `token` has two dots. Nothing in it is proven, and it may be malformed.
    """
    try:
        claims = jws.read_unverified_claims(token)
    except jws.InvalidToken:
        return False
    iss = claims.get("iss")
    if iss == issuer:
        return False
    names = {str(iss), trust_domain(str(claims.get("sub")))}
    return any(one.issuer in names for one in trusted) or (
        _type_of(token) != ACCESS_TOKEN_TYPE and is_platform_token(claims, None)
    )


def _type_of(token: str) -> str | None:
    try:
        return jws.read_header(token, also_allowed=HEADER_MEMBERS).typ
    except jws.InvalidToken:
        return None


@dataclass(slots=True)
class PlatformInspection:
    """The checks of one platform token. No key set is fetched, and a token for one use is not used."""

    token: str = field(repr=False)
    verifier: WorkloadVerifier
    issuers: Sequence[TrustedIssuer]
    """All of them, the disabled ones too."""
    find_rules: Callable[[str], Sequence[Rule]]
    """Returns all trust rules of the trusted issuer of a name."""
    find_client: Callable[[str], Client | None]
    is_spent: Callable[[str, bytes], bool]
    """Tells whether a client has used the token of a digest."""
    now: float
    form: Presented | None = None
    """How the token will be presented; None for every way."""
    credentials: PlatformCredentials = field(init=False)
    signer: TrustedIssuer = field(init=False)
    rules: Sequence[Rule] = field(init=False, default=())
    advice: list[str] = field(init=False, default_factory=list)
    """What to change if the audience is wrong, for people."""

    def run(self) -> list[Check]:
        """Run every check. The claims of a token that no trusted issuer signed are not checked.

        If no rule matches, the closest ones follow, each with the claims that differ. If rules of several clients
        match, they follow.
        """
        reading = (("header", self._header), ("issuer", self._issuer), ("signature", self._signature))
        judging = (
            ("typ", self._typ),
            ("sub", self._subject),
            ("aud", self._audience),
            ("time", self._time),
            ("rule", self._rule),
            ("use", self._use),
            ("client", self._client),
        )
        expected = (_Failed, jws.InvalidToken)
        read = run_checks(((name, _explained(check)) for name, check in reading), expected, stop=True)
        if not passed(read):
            return [*read, *(Check(name, "not checked") for name, _ in judging)]
        judged = run_checks(((name, _explained(check)) for name, check in judging), expected)
        return [*read, *judged, *rules_at_fault(self.rules, self.credentials.claims)]

    def _header(self) -> str:
        header = jws.read_header(self.token, also_allowed=HEADER_MEMBERS)
        claims = jws.read_unverified_claims(self.token)
        self.credentials = PlatformCredentials(self.token, header, claims, Presented.CLIENT_ASSERTION)
        return f"alg {header.alg}, kid {header.kid}"

    def _issuer(self) -> str:
        iss, domain = self.credentials.issuer, self.credentials.trust_domain
        named = [one for one in self.issuers if one.issuer == (domain if one.kind.name == "spiffe" else iss)]
        if not named:
            raise _Failed(f"no trusted issuer has the iss {as_word(quoted(iss))}{self._almost_named(iss)}")
        if all(one.disabled for one in named):
            name = named[0].name
            raise _Failed(f"the trusted issuer {name} is disabled. Run: authserver issuer enable {name}")
        enabled = [one for one in named if not one.disabled]
        return f"{enabled[0].issuer}: {', '.join(f'{one.name} ({one.kind.name})' for one in enabled)}"

    def _almost_named(self, iss: str) -> str:
        """Return what to do about an unknown issuer, as the end of a message."""
        for one in self.issuers:
            if f"{one.issuer}/" == iss or one.issuer == f"{iss}/":
                return (
                    f" of the token. {one.name} has {one.issuer}: they differ by the slash at the end. Remove"
                    f" {one.name} with its rules, and add it with --issuer {iss}"
                )
        return ". Run: authserver issuer list"

    def _signature(self) -> str:
        trusted, now = TrustedIssuers(self.issuers), self.now
        candidates = self.verifier.candidates(self.credentials, trusted, now)
        verified = verify_signature(self.credentials, candidates)
        self.signer = self.verifier.signer(self.credentials, verified, trusted, now)
        self.rules = self.find_rules(self.signer.name)
        age = describe_age(key_age(self.signer, now) or 0)
        origin = "fetched" if self.signer.location.is_fetched else "given"
        failed = last_failure(self.signer, now)
        return "; ".join([f"by a key of {self.signer.name}, {origin} {age} ago", *([failed] if failed else [])])

    def _typ(self) -> str:
        check_header(self.credentials, self.signer)
        return self.credentials.header.typ or "none, which is allowed"

    def _subject(self) -> str:
        return shown_claim(check_subject(self.credentials))

    def _audience(self) -> str:
        """Check the audience for each way to present the token. Where a client assertion is accepted, a grant is."""
        results = {name: self._refusal_of_audience(form) for form, name in _FORMS.items() if self.form in {None, form}}
        accepted = [name for name, refusal in results.items() if refusal is None]
        refused = [(name, refusal) for name, refusal in results.items() if refusal is not None]
        if not refused:
            return f"accepted as {', and as '.join(accepted)}"
        name, refusal = refused[0]
        expected = self.verifier.audiences(self.signer, Presented.CLIENT_ASSERTION)[0]
        if accepted:
            self.advice.append(
                f"`resourceserver token`, the bridge and most SDKs send a token as {name}. To check it as {accepted[0]}"
                " alone, run: authserver token inspect --form grant"
            )
        self.advice.append(PRESETS[self.signer.kind.name].audience.format(expected))
        if accepted:
            raise _Failed(f"accepted as {accepted[0]} only; refused as {name}: {refusal}. {refusal.remediation}")
        raise refusal

    def _refusal_of_audience(self, form: Presented) -> WorkloadRefused | None:
        try:
            self.verifier.check_audience(replace(self.credentials, presented=form), self.signer)
        except WorkloadRefused as refused:
            return refused
        return None

    def _time(self) -> str:
        expires_at = check_time(self.credentials.claims, self.signer, self.now)
        return f"accepted for {math.ceil(expires_at + LEEWAY - self.now)} s more"

    def _rule(self) -> str:
        rule = self._matching()
        return f"{rule.rule_id}: {shown_conditions(rule.conditions)}"

    def _matching(self) -> Rule:
        name, kind, claims = self.signer.name, self.signer.kind.name, self.credentials.claims
        if not self.rules:
            raise _Failed(f"{name} has no rules. The claims to use: authserver issuer claims {kind}")
        try:
            return matching_rule(self.rules, claims)
        except NoClient as none:
            matching = none.matching
        if matching:
            named = " and ".join(f"{rule.rule_id} of {rule.client_id}" for rule in matching)
            raise _Failed(
                f"rules of several clients match, so the token is refused: {named}. Remove those of all but one."
            )
        recommended = {claim: find_claim(claims, claim) for claim in PRESETS[kind].rule}
        stated = shown_conditions({claim: value for claim, value in recommended.items() if value is not None})
        raise _Failed(f"no rule of {name} matches {stated or 'its claims'}")

    def _use(self) -> str:
        client_id = self._matching().client_id
        if not self.signer.one_time:
            return "accepted again until it expires"
        if self.is_spent(client_id, token_digest(self.token)):
            raise _Failed(f"used before; tokens of {self.signer.name} are accepted once. Request a new one.")
        return "accepted once, and not used yet"

    def _client(self) -> str:
        client_id = self._matching().client_id
        client = self.find_client(client_id)
        if client is None:
            raise _Failed(f"{client_id} does not exist")
        method = client.token_endpoint_auth_method
        if method != WORKLOAD_IDENTITY:
            raise _Failed(f"{client_id} is registered for {method}, not for {WORKLOAD_IDENTITY}")
        if client.disabled:
            raise _Failed(f"{client_id} is disabled. Run: authserver client enable {client_id}")
        return f"{client_id} ({client.client_name})"


def _explained(check: Callable[[], str]) -> Callable[[], str]:
    """Return a check whose failure says how to fix it."""

    def explained() -> str:
        try:
            return check()
        except WorkloadRefused as refused:
            command = "Run: " if refused.remediation.startswith("authserver ") else ""
            # Why a fetch failed can end with a question.
            reason = str(refused) if str(refused).endswith("?") else f"{refused}."
            raise _Failed(f"{reason} {command}{refused.remediation}") from None

    return explained
