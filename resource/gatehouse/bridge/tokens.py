"""Access tokens for the remote server: requested by client credentials, renewed before expiry and after a rejection.

Token requests of the bridge carry no `scope`: the authorization server then grants every scope that the client has at
the resource, so the next token includes a new grant. A response with `insufficient_scope` causes a new token request.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpx2
import structlog

from gatehouse.bridge.bearer_token import is_bearer_token
from gatehouse.bridge.credentials import Credentials, InvalidCredentials
from gatehouse.bridge.discovery import TokenEndpoint, find_token_endpoint
from gatehouse.bridge.errors import AUTHORIZATION_SERVER, BridgeError, token_refused
from gatehouse.bridge.http_client import JsonResponse, exchange
from gatehouse.bridge.platform_claims import describe, is_made_for
from gatehouse.bridge.platform_refusal import platform_token_refused
from gatehouse.bridge.redaction import SentSecrets
from gatehouse.bridge.settings import BRIDGE, SettingNames
from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.protocol.redaction import quoted

_RENEW_AHEAD: Final = 30
"""Seconds before expiry at which a token is renewed; a fifth of its lifetime if that is shorter."""

_MAX_LIFETIME: Final = 86400
"""Seconds. A longer `expires_in` counts as one day."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token."""

    value: str = field(repr=False)
    scope: str
    client_id: str
    issuer: str
    renew_at: float
    """Seconds on the token source's clock; infinite if the issuer stated no lifetime."""
    expires_at: float
    """Seconds on the token source's clock; infinite if the issuer stated no lifetime."""


class TokenSource:
    """The current access token of one client for one resource."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        resource: str,
        issuer: str | None,
        credentials: Callable[[], Credentials],
        monotonic: Callable[[], float] = time.monotonic,
        *,
        scope: str = "",
        names: SettingNames = BRIDGE,
        now: Clock = system_clock,
    ) -> None:
        """Create a source without a token.

        Args:
            http: the client that requests tokens.
            resource: the resource identifier.
            issuer: the only issuer that may receive the credentials; None for the one that the resource names.
            credentials: called for each token request, so that a rotated secret needs no restart.
            monotonic: seconds of a monotonic clock.
            scope: the scopes to request; empty for all that the client has.
            names: what messages call the settings.
            now: seconds since the epoch, for messages.
        """
        self.resource = resource
        self.secrets = SentSecrets()
        """What the bridge has sent, for masking."""
        self._http = http
        self._issuer = issuer
        self._credentials = credentials
        self._monotonic = monotonic
        self._scope = scope
        self._names = names
        self._now = now
        self._endpoint: TokenEndpoint | None = None
        self._token: Token | None = None
        self._obtaining = anyio.Lock()

    @property
    def scope(self) -> str | None:
        """The scope of the current token; None without a token."""
        return self._token.scope if self._token is not None else None

    async def current(self) -> Token:
        """Return a token that is not about to expire. Raises BridgeError."""
        async with self._obtaining:
            token = self._token
            if token is None or self._monotonic() >= token.renew_at:
                try:
                    token = self._token = await self._obtain()
                except BridgeError as error:
                    # The old token is still valid, so a restart of the issuer goes unnoticed.
                    if token is None or not error.temporary or self._monotonic() >= token.expires_at:
                        raise
            return token

    async def replace(self, rejected: Token) -> Token:
        """Return a token other than the rejected one. Concurrent callers share one new token. Raises BridgeError."""
        async with self._obtaining:
            if self._token is None or self._token is rejected:
                self._token = await self._obtain()
            return self._token

    async def _obtain(self) -> Token:
        try:
            credentials = self._credentials()
        except InvalidCredentials as error:
            raise BridgeError(str(error)) from None
        endpoint = self._endpoint or await find_token_endpoint(self._http, self.resource, self._issuer, self._names)
        # Discovered again after any error, because the issuer may have moved its endpoint.
        self._endpoint = None
        parameters, headers = await credentials.authenticate(endpoint.issuer, self._http)
        basic = headers.get("Authorization", "").removeprefix("Basic ")
        assertion = parameters.get("client_assertion", "")
        if self._issuer is None and credentials.method == "workload_identity":
            self._require_made_for(endpoint, credentials, assertion)
        self.secrets.add(credentials.secret, basic, assertion)
        form = {"grant_type": "client_credentials", "resource": self.resource, **parameters}
        if self._scope:
            form["scope"] = self._scope
        started = self._monotonic()
        request = self._http.build_request("POST", endpoint.url, data=form, headers=headers)
        response = await exchange(self._http, AUTHORIZATION_SERVER, request, self._names)
        token = self._parse(response, credentials, assertion, endpoint, started)
        self._endpoint = endpoint
        log.info("token obtained", issuer=endpoint.issuer, scope=self.secrets.mask(token.scope))
        return token

    def _require_made_for(self, endpoint: TokenEndpoint, credentials: Credentials, assertion: str) -> None:
        """Refuse to send a platform token that is for another server, which would accept it from anyone.

        The resource named the issuer. Raises BridgeError.
        """
        if not is_made_for(assertion, {endpoint.issuer, f"{endpoint.issuer}/", endpoint.url}):
            raise BridgeError(
                f"The platform token from {credentials.source}{describe(assertion)} is not for the authorization server"
                f" {endpoint.issuer} alone, which the MCP server at {self.resource} names. It was not sent, because"
                f" that server could use it elsewhere. Request a token for this one audience; or, if you trust that"
                f" server and it expects another one, name it with {self._names.issuer}."
            )

    def _parse(
        self, response: JsonResponse, credentials: Credentials, assertion: str, endpoint: TokenEndpoint, started: float
    ) -> Token:
        """Parse a token response (RFC 6749 sections 5.1 and 5.2). Raises BridgeError."""
        members: dict[str, Any] = response.document if isinstance(response.document, dict) else {}
        if response.status != httpx2.codes.OK:
            raise self._refusal(response.status, members, credentials, assertion, endpoint)
        value, kind, lifetime = (members.get(name) for name in ("access_token", "token_type", "expires_in"))
        if not is_bearer_token(value) or str(kind).lower() != "bearer":
            raise BridgeError(f"The authorization server {endpoint.issuer} returned no bearer token.")
        self.secrets.add(value)
        expires_at = started + _lifetime(lifetime)
        ahead = min(_RENEW_AHEAD, (expires_at - started) / 5)
        scope = members.get("scope")
        if not isinstance(scope, str):
            scope = ""
        return Token(value, scope, credentials.client_id, endpoint.issuer, expires_at - ahead, expires_at)

    def _refusal(
        self,
        status: int,
        members: dict[str, Any],
        credentials: Credentials,
        assertion: str,
        endpoint: TokenEndpoint,
    ) -> BridgeError:
        code = members.get("error")
        if status >= 500 or not isinstance(code, str):
            return BridgeError(
                f"The authorization server {endpoint.issuer} answered status {status} to a token request."
                " The call was not executed; try again later.",
                temporary=status >= 500,
            )
        code, request_id = quoted(self.secrets.mask(code)), members.get("request_id")
        if credentials.method == "workload_identity" and code == "invalid_client":
            return platform_token_refused(
                issuer=endpoint.issuer,
                credentials=credentials,
                token=assertion,
                client_id_setting=self._names.client_id,
                request_id=request_id,
                now=self._now(),
            )
        return token_refused(
            issuer=endpoint.issuer,
            client_id=credentials.client_id,
            source=credentials.source,
            resource=self.resource,
            scope=self._scope,
            code=code,
            request_id=request_id,
        )


def _lifetime(expires_in: object) -> float:
    """Return the seconds that a token is used for: infinite, until it is rejected, if the issuer states no lifetime."""
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool) and expires_in > 0:
        return min(expires_in, _MAX_LIFETIME)
    if expires_in is not None:
        log.warning("the token response has an invalid expires_in; the token is used until it is rejected")
    return math.inf
