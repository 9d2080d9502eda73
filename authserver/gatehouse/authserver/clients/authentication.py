"""Client authentication (RFC 6749 2.3; RFC 7523 2.2; MCP client-credentials extension).

Each client has one method, the registered one: a secret, a key, or the tokens of its platform. Every failure gets the
same response after the same work; only the audit log names the failed check.
"""

import base64
import binascii
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from urllib.parse import unquote_to_bytes

from gatehouse.authserver.clients.assertions import (
    AcceptedAssertion,
    AssertionCredentials,
    AssertionVerifier,
    ReplayStore,
    SignatureResult,
    read_assertion,
    verify_signature,
)
from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client, ClientCache
from gatehouse.authserver.credentials.lifecycle import CredentialTable, LastUse, by_last_use, inactive_reason
from gatehouse.authserver.credentials.secrets import StoredSecret, find_secret
from gatehouse.authserver.db.models import ClientKeyRow, ClientSecretRow, TrustRuleRow
from gatehouse.authserver.errors import (
    AuthFailure,
    OAuthError,
    invalid_client,
    invalid_grant,
    invalid_request,
    temporarily_unavailable,
    too_many_requests,
)
from gatehouse.authserver.http import Form, Request
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.workloads.authentication import IdentifiedClient, WorkloadAuthenticator
from gatehouse.authserver.workloads.platform_token import PlatformCredentials, Presented
from gatehouse.authserver.workloads.verifier import WorkloadRefused
from gatehouse.shared.service.audit.events import CLAIMED
from gatehouse.shared.service.limits import Exceeded, Limit
from gatehouse.shared.service.remediation import client_command

MAX_CREDENTIAL = 512
"""Characters of a client_id or secret."""

_SEND_ONE = "Send the credential that the client was registered with: authserver client show CLIENT_ID"
_ENCODE = "Send base64(form-encoded client_id, colon, form-encoded secret), in UTF-8 (RFC 6749 2.3.1)."
_NO_NUL = "Send the client_id and the credential exactly as issued: authserver client list"

_FORM_ENCODED = re.compile(r"(?:[\x20-\x24\x26-\x7e]|%[0-9A-Fa-f]{2})*", re.ASCII)


@dataclass(frozen=True, slots=True)
class SecretCredentials:
    """A client_id and a secret, and the method that they were sent by. Nothing is proven yet."""

    client_id: str
    secret: str = field(repr=False)
    method: str


Credentials = SecretCredentials | AssertionCredentials | PlatformCredentials

_InThread = Callable[[Callable[[], None]], Awaitable[None]]

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
        accepted = self._accept(credentials, proof, client, now)
        return await self._admit(request, accepted, now, limit, request.in_thread)

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
        accepted = _accept_workload(identified, client)
        return await self._admit(request, accepted, now, limit, self.workloads.in_thread)

    async def _admit(
        self, request: Request, accepted: _Accepted, now: float, limit: Limit, in_thread: _InThread
    ) -> AuthenticatedClient:
        """Spend the assertion of an accepted client, and count its request. Raises OAuthError."""
        client_id, exceeded = accepted.client.client_id, None
        if accepted.assertion is not None:
            exceeded = await limit.peek(client_id)
            if exceeded is None:
                await self.replay.spend_async(accepted.assertion)
            else:
                await in_thread(partial(self.replay.check_unused, accepted.assertion))
        authenticated = self._complete(request, accepted, now)
        _require(exceeded or await limit.hit(client_id))
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


def read_credentials(request: Request, form: Form) -> Credentials:
    """Read the one credential of a request. Sets its `auth_method`, and `actor` to the client that it claims to be.

    For a platform token without `client_id`, the `actor` is its subject.

    Raises:
        OAuthError: `invalid_request` for two methods at once, `invalid_client` for none or a malformed one.
    """
    authorization, parameters = request.headers.get("authorization"), form.parameters
    if authorization is None and "client_id" in parameters:
        _claim(request, parameters["client_id"])
    credentials = _read(authorization, parameters)
    if isinstance(credentials, PlatformCredentials):
        claim_workload(request, credentials)
    else:
        _claim(request, credentials.client_id)
        request.auth_method = credentials.method
    return credentials


def claim_workload(request: Request, credentials: PlatformCredentials) -> None:
    """Set what is recorded of a request with a platform token, as far as it claims it."""
    _claim(request, credentials.client_id or credentials.subject)
    request.auth_method = credentials.method
    external = {"external_issuer": credentials.issuer, "external_subject": credentials.subject}
    request.external = {name: text[:MAX_CREDENTIAL] for name, text in external.items()}


def read_claimed_client(request: Request) -> None:
    """Set the request's `actor` from its Authorization header, for a request whose form cannot be parsed."""
    try:
        read_credentials(request, Form())
    except OAuthError:
        return


def _claim(request: Request, client_id: str) -> None:
    request.actor = f"{CLAIMED}{client_id[:MAX_CREDENTIAL]}"


def _read(authorization: str | None, form: Mapping[str, str]) -> Credentials:
    presented = [authorization is not None, "client_secret" in form, "client_assertion" in form]
    if sum(presented) > 1:
        raise invalid_request("Use one method of client authentication, not several (RFC 6749 2.3).")
    credentials: Credentials
    if authorization is not None:
        credentials = _read_basic(authorization)
    elif "client_assertion" in form or "client_assertion_type" in form:
        credentials = read_assertion(form)
    elif "client_secret" in form and "client_id" in form:
        credentials = SecretCredentials(form["client_id"], form["client_secret"], "client_secret_post")
    else:
        raise invalid_client(AuthFailure.NONE_SENT, "no client authentication in the request", _SEND_ONE)
    if form.get("client_id", credentials.client_id) != credentials.client_id:
        raise _malformed("client_id in the body is not the one of the credentials", "Leave client_id out.")
    secret = credentials.secret if isinstance(credentials, SecretCredentials) else ""
    if max(len(credentials.client_id), len(secret)) > MAX_CREDENTIAL:
        raise _malformed(f"credentials longer than {MAX_CREDENTIAL} characters", _SEND_ONE)
    # PostgreSQL stores no NUL in a text: the lookup would fail as if the database were unavailable. Lone surrogates,
    # which cannot be encoded either, were refused by the strict parsers of form, Basic and JSON.
    if "\x00" in credentials.client_id + secret:
        raise _malformed("credentials hold a NUL character", _NO_NUL)
    return credentials


def _read_basic(authorization: str) -> SecretCredentials:
    """Decode strictly (RFC 7617 2; form encoding inside it, RFC 6749 2.3.1): two readers must not differ."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise _malformed("Authorization scheme is not Basic", _SEND_ONE)
    try:
        decoded = base64.b64decode(encoded.strip(" "), validate=True)
        canonical = base64.b64encode(decoded) == encoded.strip(" ").encode()
        client_id, colon, secret = decoded.decode("ascii").partition(":")
    except (binascii.Error, UnicodeError, ValueError):
        canonical, client_id, colon, secret = False, "", "", ""
    if not canonical:
        raise _malformed("Basic credentials are not base64 of form-encoded text", _ENCODE)
    if not colon:
        raise _malformed("Basic credentials have no colon", _ENCODE)
    return SecretCredentials(_form_decode(client_id), _form_decode(secret), "client_secret_basic")


def _form_decode(text: str) -> str:
    if not text or _FORM_ENCODED.fullmatch(text) is None:
        raise _malformed("Basic credentials are empty or not form-encoded", _ENCODE)
    try:
        decoded = unquote_to_bytes(text.replace("+", " ")).decode("utf-8")
    except UnicodeDecodeError:
        raise _malformed("Basic credentials are not UTF-8", _ENCODE) from None
    return decoded


def _malformed(reason: str, remediation: str) -> OAuthError:
    return invalid_client(AuthFailure.MALFORMED, reason, remediation)
