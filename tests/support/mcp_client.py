"""The official SDK client with its client-credentials provider, as agents run it."""

import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import anyio
import httpx2
import pytest
from local_stack import LocalStack
from mcp import Client
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.shared.exceptions import MCPError

Mode = Literal["legacy", "2026-07-28"]
"""`legacy` speaks 2025-11-25: an initialize handshake, then requests."""


class MemoryStorage(TokenStorage):
    """Stores tokens, and keeps the history of them for the test."""

    def __init__(self) -> None:
        self.history: list[OAuthToken] = []

    async def get_tokens(self) -> OAuthToken | None:
        return self.history[-1] if self.history else None

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.history.append(tokens)

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        pass


@dataclass
class Agent:
    """One session of one client."""

    client: Client
    provider: OAuthClientProvider
    tokens: MemoryStorage
    exchanges: list[tuple[str, str, int]]
    """Method, path and status of every HTTP exchange."""

    async def call(self, tool: str, **arguments: Any) -> Any:
        """Return the structured result of a call that succeeds. Raises MCPError when it is refused."""
        result = await self.client.call_tool(tool, arguments)
        assert not result.is_error, result
        return result.structured_content

    async def refused(self, tool: str, **arguments: Any) -> MCPError:
        """Return the error of a call that is refused."""
        with pytest.raises(MCPError) as caught:
            await self.client.call_tool(tool, arguments)
        return caught.value

    async def call_until_granted(self, tool: str, **arguments: Any) -> Any:
        """Repeat a call until an admin's grant takes effect, which is within a second."""
        with anyio.fail_after(10):
            while True:
                try:
                    return await self.call(tool, **arguments)
                except MCPError:
                    await anyio.lowlevel.checkpoint()

    def statuses(self, path: str) -> list[int]:
        """Return the statuses of all exchanges at a path."""
        return [status for _, at, status in self.exchanges if at == path]


def _provider(stack: LocalStack, credentials: dict[str, Any], tokens: TokenStorage) -> OAuthClientProvider:
    client_id = credentials["client_id"]
    if credentials["token_endpoint_auth_method"] == "private_key_jwt":
        parameters = SignedJWTParameters(
            issuer=client_id,
            subject=client_id,
            signing_key=Path(credentials["private_key_file"]).read_text(encoding="ascii"),
            signing_algorithm=credentials.get("signing_algorithm", "ES256"),
        )
        return PrivateKeyJWTOAuthProvider(
            stack.resource,
            tokens,
            client_id=client_id,
            assertion_provider=parameters.create_assertion_provider(),
            issuer=stack.issuer,
        )
    return ClientCredentialsOAuthProvider(
        stack.resource,
        tokens,
        client_id=client_id,
        client_secret=credentials["client_secret"],
        token_endpoint_auth_method=credentials["token_endpoint_auth_method"],
        issuer=stack.issuer,
    )


@asynccontextmanager
async def connect(
    stack: LocalStack, credentials: dict[str, Any], mode: Mode, verify: ssl.SSLContext | bool = True
) -> AsyncIterator[Agent]:
    """Open a session with credentials that `authserver client create` printed."""
    tokens, exchanges = MemoryStorage(), []
    provider = _provider(stack, credentials, tokens)

    async def record(response: httpx2.Response) -> None:
        exchanges.append((response.request.method, response.request.url.path, response.status_code))

    async with (
        httpx2.AsyncClient(
            auth=provider, timeout=20, trust_env=False, verify=verify, event_hooks={"response": [record]}
        ) as http,
        Client(streamable_http_client(stack.resource, http_client=http), mode=mode) as client,
    ):
        yield Agent(client, provider, tokens, exchanges)
