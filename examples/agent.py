"""A machine agent: calls tools of an MCP server with the official Python SDK and client credentials.

It knows the server's URL, the issuer and its own credentials; everything else it discovers. When a tool is refused
for want of a scope, it says what it lacks, waits until somebody presses Enter, and repeats the call in the same
session: the SDK obtains a token with the new scope by itself.

    AGENT_CLIENT_ID=... AGENT_CLIENT_SECRET=... python examples/agent.py
"""

import argparse
import asyncio
import os
import sys
from typing import Any

import httpx2
from mcp import Client
from mcp.client.auth import TokenStorage
from mcp.client.auth.extensions.client_credentials import ClientCredentialsOAuthProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.shared.exceptions import MCPError

GRANT_TAKES_EFFECT = 2.0
"""Seconds. A new grant reaches the token endpoint within one second."""


class MemoryStorage(TokenStorage):
    """Keeps the token for the life of the process."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return the token, if there is one."""
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Keep a new token, and tell what it is for."""
        self.tokens = tokens
        say(f"token obtained: scope {tokens.scope!r}, {tokens.expires_in} s to live")

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return nothing: the client is registered by an admin, not by itself."""
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Keep nothing."""


def say(text: str) -> None:
    """Print a line of the story."""
    print(f"agent: {text}", flush=True)


async def log_request(response: httpx2.Response) -> None:
    """Show the HTTP exchange: the 401, the discovery, the token, the call."""
    request = response.request
    say(f"  {request.method} {request.url} -> {response.status_code}")


async def run(resource: str, issuer: str, environment: str, client_id: str, client_secret: str) -> None:
    """Call some tools, be refused one, and succeed when the grant has come."""
    provider = ClientCredentialsOAuthProvider(
        resource, MemoryStorage(), client_id=client_id, client_secret=client_secret, issuer=issuer
    )
    async with (
        httpx2.AsyncClient(auth=provider, timeout=30, event_hooks={"response": [log_request]}) as http,
        Client(streamable_http_client(resource, http_client=http)) as client,
    ):
        say(f"connected to {client.server_info.name if client.server_info else resource}")
        say(f"whoami: {await call(client, 'whoami')}")
        say(f"tools that I may call: {', '.join(tool.name for tool in (await client.list_tools()).tools)}")
        say(f"environments: {await call(client, 'list_environments')}")
        try:
            created = await call(client, "create_environment", name=environment)
        except MCPError as error:
            say(f"create_environment is refused: {error}")
            say("I need the scope env:write. Press Enter when an admin has granted it.")
            await asyncio.to_thread(sys.stdin.readline)
            created = await call_once_granted(client, "create_environment", name=environment)
        say(f"created: {created}")
        say(f"environments: {await call(client, 'list_environments')}")


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """Call a tool and return its structured result. Raises MCPError when it is refused, RuntimeError when it fails."""
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise RuntimeError(f"{tool}: {result.content[0].text}")
    return result.structured_content


async def call_once_granted(client: Client, tool: str, **arguments: Any) -> Any:
    """Repeat a call until the new grant has taken effect."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + GRANT_TAKES_EFFECT
    while True:
        try:
            return await call(client, tool, **arguments)
        except MCPError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(0.2)


def main() -> None:
    """Read the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--resource", default="http://127.0.0.1:8000/mcp", help="URL of the MCP server")
    parser.add_argument("--issuer", default="http://127.0.0.1:9000", help="issuer that the credentials belong to")
    parser.add_argument("--environment", default="ci", help="name of the environment to create")
    options = parser.parse_args()
    try:
        client_id, client_secret = os.environ["AGENT_CLIENT_ID"], os.environ["AGENT_CLIENT_SECRET"]
    except KeyError as missing:
        parser.error(f"set {missing.args[0]}; authserver client create prints both credentials")
    asyncio.run(run(options.resource, options.issuer, options.environment, client_id, client_secret))


if __name__ == "__main__":
    main()
