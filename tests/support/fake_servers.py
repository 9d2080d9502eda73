"""A resource and its issuer, without sockets, that answer as a test configures."""

import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import httpx2
import pytest

from gatehouse.bridge.bearer_auth import BearerAuth
from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.errors import BridgeError
from gatehouse.bridge.tokens import TokenSource
from support.clock import FakeClock

RESOURCE = "https://mcp.example.com/mcp"
ISSUER = "https://as.example.com"
TOKEN_ENDPOINT = f"{ISSUER}/token"
PRM = "https://mcp.example.com/.well-known/oauth-protected-resource/mcp"
METADATA = f"{ISSUER}/.well-known/oauth-authorization-server"
SECRET = "gths_0123456789abcdefghij"
CLIENT = Credentials("agent_1", "BRIDGE_CLIENT_SECRET", "client_secret_basic", secret=SECRET)


@dataclass
class Seen:
    """A request that a server received."""

    url: str
    form: dict[str, str]
    authorization: str | None


@dataclass
class FakeServers:
    """Serves metadata, tokens numbered from 1, and a resource that accepts only the newest token."""

    prm: dict[str, Any] = field(
        default_factory=lambda: {"resource": RESOURCE, "authorization_servers": [ISSUER]},
    )
    metadata: dict[str, Any] = field(
        default_factory=lambda: {"issuer": ISSUER, "token_endpoint": f"{ISSUER}/token"},
    )
    granted: str = "env:read"
    needed: str = "env:read"
    lifetime: Any = 300
    responses: dict[str, deque[httpx2.Response | Exception]] = field(default_factory=dict)
    """Responses or errors for the next requests to a URL, by URL."""
    seen: list[Seen] = field(default_factory=list)
    issued: int = 0
    clock: FakeClock = field(default_factory=FakeClock)

    def respond(self, url: str, *responses: httpx2.Response | Exception) -> None:
        self.responses.setdefault(url, deque()).extend(responses)

    def requests_to(self, url: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.url == url]

    def credentials_went_to(self) -> set[str]:
        """Return the URLs that received the secret or a token request."""
        return {seen.url for seen in self.seen if "grant_type" in seen.form or SECRET in str(seen)}

    async def serve(self, request: httpx2.Request) -> httpx2.Response:
        url, authorization = str(request.url), request.headers.get("Authorization")
        self.seen.append(Seen(url, dict(parse_qsl(request.content.decode())), authorization))
        if waiting := self.responses.get(url):
            response = waiting.popleft()
            if isinstance(response, Exception):
                raise response
            return response
        if "/.well-known/oauth-protected-resource" in url:
            return httpx2.Response(200, json=self.prm)
        if "/.well-known/" in url:
            return httpx2.Response(200, json=self.metadata)
        if url.endswith("/token"):
            return self._token()
        return self._resource(authorization)

    def _token(self) -> httpx2.Response:
        self.issued += 1
        token = {"access_token": f"token-{self.issued}", "token_type": "Bearer", "expires_in": self.lifetime}
        return httpx2.Response(200, json={**token, "scope": self.granted})

    def _resource(self, authorization: str | None) -> httpx2.Response:
        if authorization != f"Bearer token-{self.issued}":
            return httpx2.Response(401)
        if not set(self.needed.split()) <= set(self.granted.split()):
            challenge = f'Bearer error="insufficient_scope", scope="{self.needed}"'
            return httpx2.Response(403, headers={"WWW-Authenticate": challenge, "X-Request-Id": "req_1"})
        return httpx2.Response(200, json={"token": authorization})

    def tokens(self, issuer: str | None = ISSUER, credentials: Credentials = CLIENT, *, scope: str = "") -> TokenSource:
        http = httpx2.AsyncClient(transport=httpx2.MockTransport(self.serve))
        return TokenSource(http, RESOURCE, issuer, lambda: credentials, self.clock, scope=scope)

    @asynccontextmanager
    async def client(self, issuer: str | None = ISSUER) -> AsyncIterator[httpx2.AsyncClient]:
        """Yield an HTTP client that sends bearer tokens to the resource."""
        transport = httpx2.MockTransport(self.serve)
        async with httpx2.AsyncClient(transport=transport, auth=BearerAuth(self.tokens(issuer))) as http:
            yield http


async def call(servers: FakeServers, issuer: str | None = ISSUER) -> httpx2.Response:
    """Send one request to the resource."""
    async with servers.client(issuer) as http:
        return await http.post(RESOURCE, json={})


async def error_of(servers: FakeServers, issuer: str | None = ISSUER) -> BridgeError:
    """Return the error of a request to the resource, which must not contain the secret."""
    with pytest.raises(BridgeError) as caught:
        await call(servers, issuer)
    assert SECRET not in str(caught.value)
    return caught.value


def oauth_error(status: int, code: str) -> httpx2.Response:
    body = {"error": code, "error_description": "for people", "request_id": "req_9"}
    return httpx2.Response(status, content=json.dumps(body).encode())
