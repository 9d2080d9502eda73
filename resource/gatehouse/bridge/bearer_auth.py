"""Authenticates requests to the remote MCP server with access tokens, and reads its refusals."""

from collections.abc import AsyncGenerator

import httpx2
from mcp.client.auth.utils import extract_field_from_www_auth

from gatehouse.bridge.errors import (
    MCP_SERVER,
    BridgeError,
    missing_scope,
    no_response,
    redirected,
    retry_later,
    token_rejected,
)
from gatehouse.bridge.limits import bound_body, is_compressed
from gatehouse.bridge.tokens import Token, TokenSource


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
