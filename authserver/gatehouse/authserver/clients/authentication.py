"""Client authentication (RFC 6749 2.3; RFC 7523 2.2; MCP client-credentials extension).

Each client has one method, the registered one: a secret, a key, or the tokens of its platform. Every failure gets the
same response after the same work; only the audit log names the failed check.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from gatehouse.authserver.clients.assertions import (
    AssertionCredentials,
    AssertionVerifier,
    SignatureResult,
    verify_signature,
)
from gatehouse.authserver.clients.presented_credentials import MAX_CREDENTIAL, Credentials, SecretCredentials
from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client, ClientCache
from gatehouse.authserver.clients.replay import AcceptedAssertion, ReplayStore
from gatehouse.authserver.credentials.lifecycle import CredentialTable, LastUse, by_last_use, inactive_reason
from gatehouse.authserver.credentials.secrets import StoredSecret, find_secret
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, TrustRuleRow
from gatehouse.authserver.errors import (
    AuthFailure,
    OAuthError,
    invalid_client,
    invalid_grant,
    temporarily_unavailable,
    too_many_requests,
)
from gatehouse.authserver.http import Request
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.workloads.authentication import IdentifiedClient, WorkloadAuthenticator
from gatehouse.authserver.workloads.platform_token import PlatformCredentials, Presented
from gatehouse.authserver.workloads.verifier import WorkloadRefused
from gatehouse.shared.service.limits import Exceeded, Limit
from gatehouse.shared.service.remediation import client_command

Proof = SignatureResult | StoredSecret | None
"""The outcome of checking a credential: the signature of an assertion, or the secret that was found."""


@dataclass(frozen=True, slots=True)
class AuthenticatedClient:
    """A client that authenticated, or that an admin vouches for at the command line."""

    client: Client


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A client whose credential passed every check. An assertion must be spent before anything is granted."""

    client: Client
    used: tuple[CredentialTable, *tuple[str, ...]]
    """The table and the primary key of the credential, or of the trust rule."""
    assertion: AcceptedAssertion | None = None


@dataclass(frozen=True, slots=True)
class ClientAuthenticator:
    """Authenticates the client of a token or revocation request."""

    clients: ClientCache
    assertions: AssertionVerifier
    workloads: WorkloadAuthenticator
    replay: ReplayStore
    last_use: LastUse

    async def authenticate_async(
        self, request: Request, credentials: Credentials, keys: KeyRing, now: float, limit: Limit
    ) -> AuthenticatedClient:
        """Authenticate the client of a request at a time, in seconds since the epoch. Sets the request's `actor`.

        One signature is verified on the event loop, the others in a thread. What is known of the client plays no part,
        so the place where the work is done reveals nothing about it.

        The request counts in `limit` once the client has authenticated. Past it, an assertion stays unused, so that the
        client can send it again. One that was used before is refused as such, and never counts: otherwise, a copy of an
        assertion would suffice to use up the client's rate.

        Raises:
            OAuthError: `invalid_client`, or `invalid_grant` if the platform token is the grant, with the failed check
                as private reason; 429 past the limit.
            DeadlineExceeded, SQLAlchemyError: the database is unavailable.
        """
        if isinstance(credentials, PlatformCredentials):
            return await self._authenticate_workload(request, credentials, now, limit)
        client = await self.clients.get_async(credentials.client_id, request.pool)
        proof: Proof
        if isinstance(credentials, AssertionCredentials):
            first, *others = self.assertions.candidates(credentials, client.keys if client else (), now)
            proof = verify_signature(credentials, [first])
            if proof.key is None:
                proof = await request.in_thread(verify_signature, credentials, others, proof.failure)
        else:
            proof = _prove_secret(credentials, client, keys, now)
        accepted, exceeded = self._accept(credentials, proof, client, now), None
        if accepted.assertion is not None:
            exceeded = await limit.peek(accepted.client.client_id)
            if exceeded is None:
                await self.replay.spend_async(accepted.assertion)
            else:
                await request.in_thread(self.replay.check_unused, accepted.assertion)
        authenticated = self._complete(request, accepted, now)
        _require(exceeded or await limit.hit(accepted.client.client_id))
        return authenticated

    def authenticate_and_wait(
        self, request: Request, credentials: Credentials, keys: KeyRing, now: float, limit: Limit
    ) -> AuthenticatedClient:
        """Authenticate as `authenticate_async`, in a thread."""
        if isinstance(credentials, PlatformCredentials):
            return request.on_loop(self._authenticate_workload(request, credentials, now, limit, in_thread=True))
        client = self.clients.get(credentials.client_id)
        proof: Proof
        if isinstance(credentials, AssertionCredentials):
            candidates = self.assertions.candidates(credentials, client.keys if client else (), now)
            proof = verify_signature(credentials, candidates)
        else:
            proof = _prove_secret(credentials, client, keys, now)
        accepted, exceeded = self._accept(credentials, proof, client, now), None
        if accepted.assertion is not None:
            exceeded = request.on_loop(limit.peek(accepted.client.client_id))
            if exceeded is None:
                self.replay.spend_and_wait(accepted.assertion)
            else:
                self.replay.check_unused(accepted.assertion)
        authenticated = self._complete(request, accepted, now)
        _require(exceeded or request.on_loop(limit.hit(accepted.client.client_id)))
        return authenticated

    async def _authenticate_workload(
        self, request: Request, credentials: PlatformCredentials, now: float, limit: Limit, *, in_thread: bool = False
    ) -> AuthenticatedClient:
        """Authenticate the client that a platform token stands for. Uses no thread of requests.

        With `in_thread`, one of them waits for this. It does not wait for an issuer that does not answer: anybody can
        send a token with an invented `kid`.
        """
        try:
            return await self._identify_workload(request, credentials, now, limit, in_thread=in_thread)
        except WorkloadRefused as refused:
            if refused.temporary:
                raise temporarily_unavailable(refused.reason, refused.remediation, refused.cause) from None
            refusal = invalid_client(refused.cause, refused.reason, refused.remediation)
        except OAuthError as error:
            if error.error != "invalid_client":
                raise
            refusal = error
        raise invalid_grant(refusal) if credentials.presented is Presented.GRANT else refusal

    async def _identify_workload(
        self, request: Request, credentials: PlatformCredentials, now: float, limit: Limit, *, in_thread: bool
    ) -> AuthenticatedClient:
        identified = await self.workloads.identify(credentials, now, wait_for_keys=not in_thread)
        request.external = _proven(identified)
        client_id = identified.rule.client_id
        # Not in a group of clients, which may wait for a thread of requests: all of them may be here.
        client = await (
            self.workloads.load(self.clients.get, client_id)
            if in_thread
            else self.clients.get_async(client_id, self.workloads.threads)
        )
        accepted, exceeded = _accept_workload(identified, client), None
        if accepted.assertion is not None:
            exceeded = await limit.peek(accepted.client.client_id)
            if exceeded is None:
                await self.replay.spend_async(accepted.assertion)
            else:
                await self.workloads.in_thread(partial(self.replay.check_unused, accepted.assertion))
        authenticated = self._complete(request, accepted, now)
        _require(exceeded or await limit.hit(accepted.client.client_id))
        return authenticated

    def _accept(
        self, credentials: SecretCredentials | AssertionCredentials, proof: Proof, client: Client | None, now: float
    ) -> _Accepted:
        """Decide about a client, after the same work for every client. Raises OAuthError."""
        if client is None:
            raise invalid_client(AuthFailure.UNKNOWN_CLIENT, "unknown client", "authserver client list")
        if client.token_endpoint_auth_method != credentials.method:
            raise invalid_client(
                AuthFailure.WRONG_METHOD,
                f"used {credentials.method}, registered for {client.token_endpoint_auth_method}",
                client_command("show", client.client_id),
            )
        if isinstance(proof, SignatureResult):
            key, assertion = self.assertions.accept(proof, client, now)
            accepted = _Accepted(client, (ClientKeyRow, client.client_id, key.thumbprint), assertion)
        else:
            accepted = _Accepted(client, (ClientSecretRow, _accept_secret(proof, client, now).secret_id))
        _require_enabled(client)
        return accepted

    def _complete(self, request: Request, accepted: _Accepted, now: float) -> AuthenticatedClient:
        self.last_use.note(*accepted.used, now=now)
        request.actor = accepted.client.client_id
        return AuthenticatedClient(accepted.client)


def _require(exceeded: Exceeded | None) -> None:
    """Refuse a request past the limit. Raises OAuthError."""
    if exceeded is not None:
        raise too_many_requests(exceeded)


def _proven(identified: IdentifiedClient) -> Mapping[str, str]:
    """Return what is recorded of a workload whose token was verified.

    Its trusted issuer is named, too: several clusters can have one `iss`, and that of a JWT-SVID says nothing.
    """
    issuer, subject = identified.workload.issuer, identified.workload.subject
    return {
        "external_issuer": issuer.issuer,
        "external_subject": subject[:MAX_CREDENTIAL],
        "trusted_issuer": issuer.name,
    }


def _accept_workload(identified: IdentifiedClient, client: Client | None) -> _Accepted:
    """Decide about the client that a platform token stands for. Raises OAuthError."""
    rule = identified.rule
    if client is None:
        raise invalid_client(AuthFailure.UNKNOWN_CLIENT, "client was deleted meanwhile", "authserver client list")
    if client.token_endpoint_auth_method != WORKLOAD_IDENTITY:
        raise invalid_client(
            AuthFailure.WRONG_METHOD,
            f"used a platform token, registered for {client.token_endpoint_auth_method}",
            client_command("show", client.client_id),
        )
    _require_enabled(client)
    return _Accepted(client, (TrustRuleRow, rule.rule_id), identified.assertion_to_spend())


def _require_enabled(client: Client) -> None:
    if client.disabled:
        remediation = client_command("enable", client.client_id)
        raise invalid_client(AuthFailure.DISABLED_CLIENT, "client is disabled", remediation)


def _prove_secret(
    credentials: SecretCredentials, client: Client | None, keys: KeyRing, now: float
) -> StoredSecret | None:
    return find_secret(credentials.secret, by_last_use(client.secrets if client else (), now), keys.peppers)


def _accept_secret(proof: StoredSecret | None, client: Client, now: float) -> StoredSecret:
    if proof is None:
        raise invalid_client(AuthFailure.WRONG_SECRET, "wrong secret", _compare_secrets(client.client_id))
    if proof.lifetime.is_inactive(now):
        reason = f"the secret {proof.secret_id} {inactive_reason(proof.lifetime)}"
        raise invalid_client(AuthFailure.INACTIVE_SECRET, reason, _use_newer_secret(client.client_id))
    return proof


def _compare_secrets(client_id: str) -> str:
    """Return the remediation of a wrong secret. It holds no command that would revoke the right one when pasted."""
    known = client_command("secret list", client_id)
    return (
        f"Compare the start of the secret in use with: {known}. Only if the secret is lost: authserver client secret "
        "rotate, which revokes the present secret at once."
    )


def _use_newer_secret(client_id: str) -> str:
    """Return the remediation of an inactive secret. It holds no command that would revoke the active one."""
    known = client_command("secret list", client_id)
    return f"Use the client's newer secret: {known}. Only if that one is lost: authserver client secret rotate."
