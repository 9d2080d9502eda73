"""The `fastmcp` client with its client-credentials providers."""

import asyncio
from typing import Any

import httpx2
from fastmcp import Client
from fastmcp.client.auth import ClientCredentialsOAuthProvider, PrivateKeyJWTOAuthProvider
from fastmcp.client.transports import StreamableHttpTransport
from session import assertions, read_agent, record, serve


def credentials_provider(agent: dict[str, Any]) -> httpx2.Auth:
    client_id, issuer = agent["client_id"], agent["issuer"]
    if "client_secret" not in agent:
        return PrivateKeyJWTOAuthProvider(client_id=client_id, assertion_provider=assertions(agent), issuer=issuer)
    return ClientCredentialsOAuthProvider(client_id=client_id, client_secret=agent["client_secret"], issuer=issuer)


def recording_client(**options: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(**options, trust_env=False, event_hooks={"response": [record]})


async def main() -> None:
    agent = read_agent()
    mode = "legacy" if agent["protocol"] == "2025-11-25" else agent["protocol"]
    transport = StreamableHttpTransport(
        agent["resource"], auth=credentials_provider(agent), httpx_client_factory=recording_client
    )
    async with Client(transport, mode=mode) as client:

        async def call_tool(tool: str, arguments: dict[str, Any]) -> tuple[bool, Any, list[Any]]:
            result = await client.call_tool(tool, arguments, raise_on_error=False)
            return result.is_error, result.structured_content, result.content

        tools = [tool.model_dump(mode="json", by_alias=True, exclude_none=True) for tool in await client.list_tools()]
        await serve(client.protocol_version or "", tools, call_tool)


asyncio.run(main())
