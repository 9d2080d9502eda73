"""The `mcp` client with its client-credentials providers."""

import asyncio
from typing import Any

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider, TokenStorage
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider, PrivateKeyJWTOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from session import assertions, read_agent, record, serve


class MemoryStorage(TokenStorage):
    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        self.tokens = tokens

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        pass


def credentials_provider(agent: dict[str, Any]) -> OAuthClientProvider:
    resource, client_id, issuer = agent["resource"], agent["client_id"], agent["issuer"]
    if "client_secret" not in agent:
        return PrivateKeyJWTOAuthProvider(
            resource, MemoryStorage(), client_id=client_id, assertion_provider=assertions(agent), issuer=issuer
        )
    return ClientCredentialsOAuthProvider(
        resource, MemoryStorage(), client_id=client_id, client_secret=agent["client_secret"], issuer=issuer
    )


async def main() -> None:
    agent = read_agent()
    mode = "legacy" if agent["protocol"] == "2025-11-25" else agent["protocol"]
    hooks = {"response": [record]}
    async with (
        httpx2.AsyncClient(auth=credentials_provider(agent), trust_env=False, event_hooks=hooks) as http,
        Client(streamable_http_client(agent["resource"], http_client=http), mode=mode) as client,
    ):

        async def call_tool(tool: str, arguments: dict[str, Any]) -> tuple[bool, Any, list[Any]]:
            result = await client.call_tool(tool, arguments)
            return bool(result.is_error), result.structured_content, result.content

        tools = (await client.list_tools()).tools
        described = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in tools]
        await serve(client.protocol_version, described, call_tool)


asyncio.run(main())
