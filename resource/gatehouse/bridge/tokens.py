"""Access tokens for the remote server: requested by client credentials, renewed before expiry and after a rejection.

Token requests carry no `scope`: the authorization server then grants every scope that the client has at the resource,
so the next token includes a new grant. A response with `insufficient_scope` causes a new token request.
"""

import math
import re
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard

import anyio
import httpx2
import structlog
from mcp.client.auth.utils import extract_field_from_www_auth

from gatehouse.bridge.credentials import BRIDGE, Credentials, InvalidCredentials, SettingNames
from gatehouse.bridge.discovery import JsonResponse, TokenEndpoint, exchange, find_token_endpoint
from gatehouse.bridge.errors import (
    AUTHORIZATION_SERVER,
    MCP_SERVER,
    BridgeError,
    missing_scope,
    no_response,
    redirected,
    retry_later,
    token_refused,
    token_rejected,
)
from gatehouse.bridge.limits import bound_body, is_compressed
from gatehouse.bridge.redaction import SentSecrets
from gatehouse.shared.protocol.redaction import quoted

_RENEW_AHEAD: Final = 30
"""Seconds before expiry at which a token is renewed; a fifth of its lifetime if that is shorter."""

_MAX_LIFETIME: Final = 86400
"""Seconds. A longer `expires_in` counts as one day."""

_MAX_TOKEN: Final = 8192
"""Characters of an access token."""

_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
"""The `b64token` of RFC 6750 section 2.1: no other text fits into an Authorization header."""

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
        names: SettingNames = BRIDGE,
    ) -> None:
        """Create a source without a token.

        Args:
            http: the client that requests tokens.
            resource: the resource identifier.
            issuer: the only issuer that may receive the credentials; None for the one that the resource names.
            credentials: called for each token request, so that a rotated secret needs no restart.
            monotonic: seconds of a monotonic clock.
            names: what messages call the settings.
        """
        self.resource = resource
        self.secrets = SentSecrets()
        """What the bridge has sent, for masking."""
        self._http = http
        self._issuer = issuer
        self._credentials = credentials
        self._monotonic = monotonic
        self._names = names
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
        parameters, headers = await credentials.authenticate(endpoint.issuer)
        basic = headers.get("Authorization", "").removeprefix("Basic ")
        self.secrets.add(credentials.secret, basic, parameters.get("client_assertion", ""))
        form = {"grant_type": "client_credentials", "resource": self.resource, **parameters}
        started = self._monotonic()
        request = self._http.build_request("POST", endpoint.url, data=form, headers=headers)
        response = await exchange(self._http, AUTHORIZATION_SERVER, request, self._names)
        token = self._parse(response, credentials, endpoint, started)
        self._endpoint = endpoint
        log.info("token obtained", issuer=endpoint.issuer, scope=self.secrets.mask(token.scope))
        return token

    def _parse(
        self, response: JsonResponse, credentials: Credentials, endpoint: TokenEndpoint, started: float
    ) -> Token:
        """Parse a token response (RFC 6749 sections 5.1 and 5.2). Raises BridgeError."""
        members: dict[str, Any] = response.document if isinstance(response.document, dict) else {}
        if response.status != httpx2.codes.OK:
            raise self._refusal(response.status, members, credentials, endpoint)
        value, kind, lifetime = (members.get(name) for name in ("access_token", "token_type", "expires_in"))
        if not _is_token(value) or str(kind).lower() != "bearer":
            raise BridgeError(f"The authorization server {endpoint.issuer} returned no bearer token.")
        self.secrets.add(value)
        expires_at = started + _lifetime(lifetime)
        ahead = min(_RENEW_AHEAD, (expires_at - started) / 5)
        scope = members.get("scope")
        if not isinstance(scope, str):
            scope = ""
        return Token(value, scope, credentials.client_id, endpoint.issuer, expires_at - ahead, expires_at)

    def _refusal(
        self, status: int, members: dict[str, Any], credentials: Credentials, endpoint: TokenEndpoint
    ) -> BridgeError:
        code = members.get("error")
        if status >= 500 or not isinstance(code, str):
            return BridgeError(
                f"The authorization server {endpoint.issuer} answered status {status} to a token request."
                " The call was not executed; try again later.",
                temporary=status >= 500,
            )
        return token_refused(
            issuer=endpoint.issuer,
            client_id=credentials.client_id,
            source=credentials.source,
            resource=self.resource,
            code=quoted(self.secrets.mask(code)),
            request_id=members.get("request_id"),
        )


def _is_token(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and len(value) <= _MAX_TOKEN and _TOKEN.fullmatch(value) is not None


def _lifetime(expires_in: object) -> float:
    """Return the seconds that a token is used for: infinite, until it is rejected, if the issuer states no lifetime."""
    if isinstance(expires_in, int | float) and not isinstance(expires_in, bool) and expires_in > 0:
        return min(expires_in, _MAX_LIFETIME)
    if expires_in is not None:
        log.warning("the token response has an invalid expires_in; the token is used until it is rejected")
    return math.inf


class BearerAuth(httpx2.Auth):
    """Adds the token to each request to the remote server, and raises BridgeError for HTTP error responses."""

    def __init__(self, tokens: TokenSource) -> None:
        """Create an authentication flow that uses the source's tokens."""
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send a request, and repeat it once with a new token if that may help. Raises BridgeError."""
        token = await self._tokens.current()
        response = yield _authorized(request, token)
        self._bound(response)
        if response.status_code == 401:
            token = await self._tokens.replace(token)
            response = yield _authorized(request, token)
            self._bound(response)
        elif _is_insufficient_scope(response) and (granted := await self._token_with_new_scope(token)) is not None:
            token = granted
            response = yield _authorized(request, token)
            self._bound(response)
        if (error := self._error(response, token)) is not None:
            raise error

    def _bound(self, response: httpx2.Response) -> None:
        """Limit what is read of a response. Raises BridgeError for a compressed one, which may unpack to any length."""
        if is_compressed(response):
            raise no_response(self._tokens.resource, "compressed")
        bound_body(response)

    async def _token_with_new_scope(self, token: Token) -> Token | None:
        """Return a token whose scope differs from that of the given token; None if there is none."""
        try:
            renewed = await self._tokens.replace(token)
        except BridgeError:
            # The missing scope is known, and is more useful to report than the failed renewal.
            return None
        return renewed if renewed.scope != token.scope else None

    def _error(self, response: httpx2.Response, token: Token) -> BridgeError | None:
        """Return the error that a response stands for; None if the MCP client can read the response."""
        status, resource = response.status_code, self._tokens.resource
        request_id = response.headers.get("x-request-id")
        if status == 401:
            return token_rejected(token.issuer, resource, request_id)
        if _is_insufficient_scope(response):
            needed = extract_field_from_www_auth(response, "scope")
            return missing_scope(token.client_id, resource, needed, request_id)
        if 300 <= status < 400:
            return redirected(resource, status)
        if status in {429, 503}:
            return retry_later(MCP_SERVER, resource, status, response.headers.get("retry-after"))
        if status >= 500:
            return no_response(resource, f"status {status}")
        kind = response.headers.get("content-type", "").lower()
        if status == 200 and not kind.startswith(("application/json", "text/event-stream")):
            return no_response(resource, "not MCP")
        if status >= 400 and not kind.startswith("application/json"):
            return BridgeError(f"There is no MCP server at {resource} (status {status}). Check the URL.")
        return None


def _authorized(request: httpx2.Request, token: Token) -> httpx2.Request:
    request.headers["Authorization"] = f"Bearer {token.value}"
    request.headers["Accept-Encoding"] = "identity"
    return request


def _is_insufficient_scope(response: httpx2.Response) -> bool:
    return response.status_code == 403 and extract_field_from_www_auth(response, "error") == "insufficient_scope"
