"""Identifies the client of a platform token: verifies it, and matches the trust rules of its issuer."""

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

from gatehouse.authserver.clients.assertions import AcceptedAssertion
from gatehouse.authserver.errors import AuthFailure
from gatehouse.authserver.workloads.key_refresher import KeyRefresher
from gatehouse.authserver.workloads.platform_token import PlatformCredentials
from gatehouse.authserver.workloads.registry import IssuerCache, RuleCache, RuleKey, TrustedIssuer, TrustedIssuers
from gatehouse.authserver.workloads.rules import NoClient, Rule, matching_rule, remove_command, token_anchors
from gatehouse.authserver.workloads.verifier import (
    Candidate,
    Workload,
    WorkloadRefused,
    WorkloadVerifier,
    verify_signature,
)
from gatehouse.shared.protocol.redaction import as_word, quoted
from gatehouse.shared.service.cache import MustWait
from gatehouse.shared.service.deadline import DeadlineExceeded, before_deadline, remaining
from gatehouse.shared.service.request_threads import RequestThreads

T = TypeVar("T")

RESERVE: Final = 1.0
"""Seconds before the deadline of a request after which it waits for no keys, so that its refusal can be recorded."""

PLATFORM_TOKEN: Final = "platform_token"  # noqa: S105 - a purpose
"""The purpose that a token for one use is spent for."""

THREADS: Final = 2
"""For what must be waited for. Not those of requests: all of them may wait for this."""


@dataclass(frozen=True, slots=True)
class IdentifiedClient:
    """The client that a platform token stands for, by a trust rule. It may be disabled, or deleted by now."""

    workload: Workload
    rule: Rule
    token_digest: bytes = field(repr=False)

    def assertion_to_spend(self) -> AcceptedAssertion | None:
        """Return what must be spent before anything is granted; None if the token may be used again."""
        if not self.workload.issuer.one_time:
            return None
        return AcceptedAssertion(self.rule.client_id, self.token_digest, self.workload.expires_at, PLATFORM_TOKEN)


def token_digest(token: str) -> bytes:
    """Return by what a token for one use is known: SHA-256 of what the issuer signed.

    The signature is left out: some algorithms have several for one text.
    """
    return hashlib.sha256(token.rpartition(".")[0].encode()).digest()


@dataclass(frozen=True, slots=True)
class WorkloadAuthenticator:
    """Identifies the client of a platform token. For use on the event loop only."""

    issuers: IssuerCache
    rules: RuleCache
    verifier: WorkloadVerifier
    refresher: KeyRefresher
    threads: RequestThreads

    async def identify(
        self, credentials: PlatformCredentials, now: float, *, wait_for_keys: bool = True
    ) -> IdentifiedClient:
        """Return the client of a token at a time, in seconds since the epoch.

        One signature is verified on the event loop, the others in a thread. Without `wait_for_keys`, a token with a
        new key is refused while that key is fetched.

        Raises:
            WorkloadRefused: the token is not accepted, or identifies no client; the reason names the failed check.
            DeadlineExceeded, SQLAlchemyError: the database is unavailable.
        """
        issuers, candidates = await self._candidates(credentials, now, wait_for_keys=wait_for_keys)
        first, *others = candidates
        verified = verify_signature(credentials, [first])
        if not verified.issuers or (others and others[0].issuer is not None):
            verified = await self.in_thread(lambda: verify_signature(credentials, others, verified))
        workload = self.verifier.accept(credentials, verified, issuers, now)
        rule = await self._rule(workload)
        if credentials.client_id not in {"", rule.client_id}:
            raise WorkloadRefused(
                f"client_id is {as_word(quoted(credentials.client_id))}, and the token stands for {rule.client_id}",
                "Leave client_id out, or send that of the client.",
            )
        return IdentifiedClient(workload, rule, token_digest(credentials.token))

    async def _candidates(
        self, credentials: PlatformCredentials, now: float, *, wait_for_keys: bool
    ) -> tuple[TrustedIssuers, list[Candidate]]:
        """Return the trusted issuers and the keys to try, after a fetch of the keys if none has the token's `kid`."""
        issuers = await self.load(self.issuers.get, None)
        candidates = self.verifier.candidates(credentials, issuers, now)
        due = self._due(credentials, issuers, now) if candidates[0].issuer is None else []
        if not wait_for_keys:
            for issuer in due:
                self.refresher.begin(issuer)
        elif due:
            await self._fetch(due)
            issuers = await self.load(self.issuers.get, None)
            candidates = self.verifier.candidates(credentials, issuers, now)
        return issuers, candidates

    def _due(self, credentials: PlatformCredentials, issuers: TrustedIssuers, now: float) -> list[TrustedIssuer]:
        """Return the issuers that may have signed a token with a new key, and whose keys may be fetched now."""
        return [
            issuer
            for issuer in issuers.possible(credentials.issuer, credentials.trust_domain)
            if credentials.header.alg in issuer.algorithms and issuer.may_have_new_keys(now)
        ]

    async def _fetch(self, issuers: Sequence[TrustedIssuer]) -> None:
        """Wait until the keys of issuers were fetched. Raises WorkloadRefused: the request can wait no longer."""
        try:
            async with asyncio.timeout(max(0.0, remaining() - RESERVE)):
                await asyncio.gather(*map(self.refresher.refetch, issuers))
        except (TimeoutError, DeadlineExceeded):
            name = issuers[0].name
            raise WorkloadRefused(
                f"the keys of {name} are being fetched",
                f"authserver issuer show {name}",
                AuthFailure.ASSERTION_SIGNATURE,
                temporary=True,
            ) from None

    async def _rule(self, workload: Workload) -> Rule:
        """Return the rule that a workload matches. Raises WorkloadRefused."""
        issuer, claims = workload.issuer, workload.claims
        rules = await self.rules.get_async(RuleKey(issuer.name, token_anchors(issuer.kind, claims)), self.threads)
        try:
            return matching_rule(rules, claims)
        except NoClient as none:
            raise WorkloadRefused(str(none), _remediation(none, issuer), AuthFailure.UNTRUSTED_WORKLOAD) from None

    def close(self) -> None:
        """End the threads."""
        self.threads.stop()

    async def load(self, function: Callable[..., T], *args: object) -> T:
        """Call a function with `wait=False` on the event loop or, if that raises MustWait, in a thread.

        Raises:
            DeadlineExceeded: as for `in_thread`.
        """
        try:
            return function(*args, wait=False)
        except MustWait:
            return await self.in_thread(partial(function, *args))

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Call a function that may wait, in a thread that no request occupies. Raises DeadlineExceeded."""
        return await before_deadline(asyncio.get_running_loop().run_in_executor(self.threads, function))


def _remediation(none: NoClient, issuer: TrustedIssuer) -> str:
    """Say how to let a token identify one client. Which of two clients it should be, only an administrator knows."""
    if not none.matching:
        return f"authserver client trust add CLIENT_ID --issuer {issuer.name} --claim sub=..."
    by_client = {rule.client_id: remove_command(rule.client_id, rule.rule_id) for rule in none.matching}
    first, second, *_ = by_client.values()
    return f"Remove the rule of one of the clients: {first}, or {second}"
