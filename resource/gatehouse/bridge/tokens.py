"""Access tokens for the remote server: obtained by client credentials, renewed before they expire and when refused.

No `scope` is asked for: the authorization server then gives all that the client was granted at the resource, so a new
grant is in the next token. A refusal for want of a scope is reason to ask for one.
"""

import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
from typing import Any, Final

import anyio
import httpx2
import structlog
from mcp.client.auth.utils import extract_field_from_www_auth

from gatehouse.bridge import failures
from gatehouse.bridge.credentials import Credentials, InvalidCredentials
from gatehouse.bridge.discovery import (
    AUTHORIZATION_SERVER,
    MCP_SERVER,
    Answer,
    TokenEndpoint,
    exchange,
    find_token_endpoint,
)
from gatehouse.bridge.failures import Failure

_RENEW_AHEAD: Final = 30
"""Seconds before its expiry that a token is renewed; a fifth of its life, if that is shorter."""

log = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Token:
    """An access token in use."""

    value: str = field(repr=False)
    scope: str
    client_id: str
    issuer: str
    renew_at: float
    """In seconds of the source's clock; infinite where the issuer did not say how long it lives."""
    expires_at: float


class TokenSource:
    """The token of one client for one resource."""

    def __init__(
        self,
        http: httpx2.AsyncClient,
        resource: str,
        issuer: str | None,
        credentials: Callable[[], Credentials],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a source that has no token yet.

        Args:
            http: what tokens are obtained with.
            resource: the resource identifier.
            issuer: the only issuer that the credentials may go to; None for one that the resource may name.
            credentials: read anew for each token, so that a replaced secret needs no restart.
            monotonic: seconds; a clock that only goes forward.
        """
        self.resource = resource
        self._http = http
        self._issuer = issuer
        self._credentials = credentials
        self._monotonic = monotonic
        self._endpoint: TokenEndpoint | None = None
        self._token: Token | None = None
        self._obtaining = anyio.Lock()

    @property
    def scope(self) -> str | None:
        """The scope of the token in use; None while there is none."""
        return self._token.scope if self._token is not None else None

    async def current(self) -> Token:
        """Return a token that is not about to expire. Raises Failure."""
        async with self._obtaining:
            token = self._token
            if token is None or self._monotonic() >= token.renew_at:
                try:
                    token = self._token = await self._obtain()
                except Failure as failure:
                    # The old one does as long as it lives: an issuer that restarts is not noticed.
                    if token is None or not failure.temporary or self._monotonic() >= token.expires_at:
                        raise
            return token

    async def replace(self, refused: Token) -> Token:
        """Return another token than one that was refused; all who bring the same one share it. Raises Failure."""
        async with self._obtaining:
            if self._token is None or self._token is refused:
                self._token = await self._obtain()
            return self._token

    async def _obtain(self) -> Token:
        try:
            credentials = self._credentials()
        except InvalidCredentials as error:
            raise Failure(str(error)) from None
        endpoint = self._endpoint or await find_token_endpoint(self._http, self.resource, self._issuer)
        # Found again after any failure: the issuer may have moved its endpoint meanwhile.
        self._endpoint = None
        parameters, headers = await credentials.authenticate(endpoint.issuer)
        form = {"grant_type": "client_credentials", "resource": self.resource, **parameters}
        started = self._monotonic()
        request = self._http.build_request("POST", endpoint.url, data=form, headers=headers)
        token = self._read(await exchange(self._http, AUTHORIZATION_SERVER, request), credentials, endpoint, started)
        self._endpoint = endpoint
        log.info("token obtained", issuer=endpoint.issuer, scope=token.scope)
        return token

    def _read(self, answer: Answer, credentials: Credentials, endpoint: TokenEndpoint, started: float) -> Token:
        """Read a token response (RFC 6749 5.1, 5.2). Raises Failure."""
        members: dict[str, Any] = answer.document if isinstance(answer.document, dict) else {}
        if answer.status != httpx2.codes.OK:
            raise self._refusal(answer.status, members, credentials, endpoint)
        value, kind, lifetime = (members.get(name) for name in ("access_token", "token_type", "expires_in"))
        if not isinstance(value, str) or not value.isascii() or str(kind).lower() != "bearer":
            raise Failure(f"The authorization server {endpoint.issuer} answered without a bearer token.")
        expires_at = started + lifetime if isinstance(lifetime, int) and lifetime > 0 else float("inf")
        ahead = min(_RENEW_AHEAD, (expires_at - started) / 5)
        scope = str(members.get("scope", ""))
        return Token(value, scope, credentials.client_id, endpoint.issuer, expires_at - ahead, expires_at)

    def _refusal(
        self, status: int, members: dict[str, Any], credentials: Credentials, endpoint: TokenEndpoint
    ) -> Failure:
        code = members.get("error")
        if status >= 500 or not isinstance(code, str):
            return Failure(
                f"The authorization server {endpoint.issuer} answers status {status} to a token request."
                " Nothing was carried out; try again later.",
                temporary=status >= 500,
            )
        return failures.refused_client(
            issuer=endpoint.issuer,
            client_id=credentials.client_id,
            source=credentials.source,
            resource=self.resource,
            code=code[:64],
            request_id=members.get("request_id"),
        )


class BearerAuth(httpx2.Auth):
    """Puts the token on each request to the remote server, and turns what HTTP refuses into a Failure."""

    def __init__(self, tokens: TokenSource) -> None:
        """Take tokens from a source."""
        self._tokens = tokens

    async def async_auth_flow(self, request: httpx2.Request) -> AsyncGenerator[httpx2.Request, httpx2.Response]:
        """Send a request; once more with a new token, where that may help. Raises Failure."""
        token = await self._tokens.current()
        response = yield _bearing(request, token)
        if response.status_code == 401:
            token = await self._tokens.replace(token)
            response = yield _bearing(request, token)
        elif _lacks_scope(response) and (granted := await self._granted_since(token)) is not None:
            token = granted
            response = yield _bearing(request, token)
        if (failure := self._failure(response, token)) is not None:
            raise failure

    async def _granted_since(self, token: Token) -> Token | None:
        """Return a token with other rights than one that had too few; None where there is none."""
        try:
            renewed = await self._tokens.replace(token)
        except Failure:
            # What is missing is known, and says more than that it could not be looked up again.
            return None
        return renewed if renewed.scope != token.scope else None

    def _failure(self, response: httpx2.Response, token: Token) -> Failure | None:
        """Return what a response means where it is not for the MCP client to read."""
        status, resource = response.status_code, self._tokens.resource
        request_id = response.headers.get("x-request-id")
        if status == 401:
            return failures.refused_token(token.issuer, resource, request_id)
        if _lacks_scope(response):
            needed = extract_field_from_www_auth(response, "scope")
            return failures.lacks_scope(token.client_id, resource, needed, request_id)
        if status in {429, 503}:
            return failures.busy(MCP_SERVER, resource, status)
        if status >= 500:
            return failures.broken_off(resource, f"status {status}")
        kind = response.headers.get("content-type", "").lower()
        if status == 200 and not kind.startswith(("application/json", "text/event-stream")):
            return failures.broken_off(resource, "it was not MCP")
        if status >= 400 and not kind.startswith("application/json"):
            return Failure(f"There is no MCP server at {resource} (status {status}). Check the URL.")
        return None


def _bearing(request: httpx2.Request, token: Token) -> httpx2.Request:
    request.headers["Authorization"] = f"Bearer {token.value}"
    return request


def _lacks_scope(response: httpx2.Response) -> bool:
    return response.status_code == 403 and extract_field_from_www_auth(response, "error") == "insufficient_scope"
