"""A machine agent that calls MCP tools with the official Python SDK and client credentials.

It knows the server's URL, the issuer and its own credentials, and discovers everything else. When a tool needs a scope
that the agent does not have, it prints the refusal and repeats the call in the same session until an admin grants the
scope. The SDK obtains the token with the new scope.

    AGENT_CLIENT_ID=... AGENT_CLIENT_SECRET=... python examples/agent.py
    AGENT_CLIENT_ID=... AGENT_PRIVATE_KEY_FILE=agent.pem python examples/agent.py

An agent that its platform identifies has no secret. It sends the token in a file that the platform keeps current, or
that of a job of GitHub Actions:

    AGENT_TOKEN_FILE=/var/run/secrets/gatehouse/token python examples/agent.py
    AGENT_GITHUB_OIDC=1 python examples/agent.py

With VERBOSE=1 it prints every HTTP request.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider, OAuthFlowError, TokenStorage
from mcp.client.auth.extensions.client_credentials import (
    ClientCredentialsOAuthProvider,
    PrivateKeyJWTOAuthProvider,
    SignedJWTParameters,
)
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import OAuthClientInformationFull, OAuthToken
from mcp.shared.exceptions import MCPError

RESOURCE = "http://127.0.0.1:8000/mcp"
ISSUER = "http://127.0.0.1:9000"

BETWEEN_TRIES = 1.0
"""Seconds. A new grant takes effect at the token endpoint within one second."""


class ToolFailed(Exception):
    """The call was allowed and the tool reported an error."""


class MemoryStorage(TokenStorage):
    """Keeps the token in memory."""

    def __init__(self) -> None:
        self.tokens: OAuthToken | None = None

    async def get_tokens(self) -> OAuthToken | None:
        """Return the current token, or None."""
        return self.tokens

    async def set_tokens(self, tokens: OAuthToken) -> None:
        """Store a new token and print its scope."""
        self.tokens = tokens
        say(f"token obtained: scope {tokens.scope!r}, valid for {tokens.expires_in} s")

    async def get_client_info(self) -> OAuthClientInformationFull | None:
        """Return None: an admin registered the client."""
        return None

    async def set_client_info(self, client_info: OAuthClientInformationFull) -> None:
        """Do nothing: the client does not register itself."""


async def token_of_file(audience: str) -> str:
    """Return the token of the platform. It is read again for each request, because the platform replaces it."""
    document = await asyncio.to_thread(Path(os.environ["AGENT_TOKEN_FILE"]).read_bytes)
    return document.decode("ascii").strip()


async def token_of_github(audience: str) -> str:
    """Return a new token of this job of GitHub Actions. The job needs the permission `id-token: write`."""
    url = httpx2.URL(os.environ["ACTIONS_ID_TOKEN_REQUEST_URL"]).copy_add_param("audience", audience)
    headers = {"Authorization": f"Bearer {os.environ['ACTIONS_ID_TOKEN_REQUEST_TOKEN']}"}
    async with httpx2.AsyncClient(timeout=20) as http:
        response = await http.get(url, headers=headers)
        return str(response.raise_for_status().json()["value"])


def platform_token() -> Callable[[str], Awaitable[str]] | None:
    """Return what reads the token of the platform for an audience; None for an agent with credentials of its own."""
    if "AGENT_TOKEN_FILE" in os.environ:
        return token_of_file
    return token_of_github if "AGENT_GITHUB_OIDC" in os.environ else None


def credentials_provider(resource: str, issuer: str) -> OAuthClientProvider:
    """Return the SDK's provider for the credentials in the environment.

    Raises:
        KeyError: a variable is missing.
    """
    storage = MemoryStorage()
    if (provider := platform_token()) is not None:
        # The token says which client this is. The SDK needs a client_id, but does not send it.
        return PrivateKeyJWTOAuthProvider(
            resource, storage, client_id="workload", assertion_provider=provider, issuer=issuer
        )
    client_id = os.environ["AGENT_CLIENT_ID"]
    if key_file := os.environ.get("AGENT_PRIVATE_KEY_FILE"):
        parameters = SignedJWTParameters(
            issuer=client_id,
            subject=client_id,
            signing_key=Path(key_file).read_text(encoding="ascii"),
            signing_algorithm="ES256",
        )
        assertions = parameters.create_assertion_provider()
        return PrivateKeyJWTOAuthProvider(
            resource, storage, client_id=client_id, assertion_provider=assertions, issuer=issuer
        )
    secret = os.environ["AGENT_CLIENT_SECRET"]
    return ClientCredentialsOAuthProvider(resource, storage, client_id=client_id, client_secret=secret, issuer=issuer)


def say(text: str) -> None:
    """Print a line."""
    print(f"agent: {text}", flush=True)


async def log_request(response: httpx2.Response) -> None:
    """Print a request and its status: the 401, the discovery, the token request, the call."""
    if os.environ.get("VERBOSE"):
        request = response.request
        say(f"  {request.method} {request.url} -> {response.status_code}")


async def run(options: argparse.Namespace, provider: OAuthClientProvider) -> None:
    """Call some tools. Repeat one of them until an admin grants its scope."""
    async with (
        httpx2.AsyncClient(auth=provider, timeout=30, event_hooks={"response": [log_request]}) as http,
        Client(streamable_http_client(options.resource, http_client=http)) as client,
    ):
        say(f"connected to {client.server_info.name if client.server_info else options.resource}")
        say(f"whoami: {await call(client, 'whoami')}")
        say(f"tools it may call: {', '.join(tool.name for tool in (await client.list_tools()).tools)}")
        say(f"environments: {await call(client, 'list_environments')}")
        say(f"calling create_environment with the name {options.environment!r}")
        try:
            created = await call(client, "create_environment", name=options.environment)
        except MCPError as error:
            say(f"create_environment is refused: {error}")
            say(f"waiting for the grant, for up to {options.wait} s")
            created = await call_once_granted(client, options.wait, "create_environment", name=options.environment)
        say(f"created: {created}")
        say(f"environments: {await call(client, 'list_environments')}")


async def call(client: Client, tool: str, **arguments: Any) -> Any:
    """Call a tool and return its structured result.

    Raises:
        MCPError: the server refused the call.
        ToolFailed: the tool reported an error.
    """
    result = await client.call_tool(tool, arguments)
    if result.is_error:
        raise ToolFailed(f"{tool}: {result.content[0].text}")
    return result.structured_content


async def call_once_granted(client: Client, wait: float, tool: str, **arguments: Any) -> Any:
    """Repeat a call until it is allowed.

    Raises:
        MCPError: the call is still refused after `wait` seconds.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + wait
    while True:
        try:
            return await call(client, tool, **arguments)
        except MCPError:
            if loop.time() > deadline:
                raise
            await asyncio.sleep(BETWEEN_TRIES)


def main() -> None:
    """Parse the command line and run."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--resource", default=os.environ.get("AGENT_RESOURCE", RESOURCE), help="URL of the MCP server")
    parser.add_argument("--issuer", default=os.environ.get("AGENT_ISSUER", ISSUER), help="issuer of the credentials")
    parser.add_argument("--environment", default="ci", help="name of the environment to create")
    parser.add_argument("--wait", type=int, default=60, metavar="SECONDS", help="how long to wait for a grant")
    options = parser.parse_args()
    # The SDK also raises what it logs about a failed authorization; the exception is printed below.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    try:
        provider = credentials_provider(options.resource, options.issuer)
    except KeyError as missing:
        parser.error(f"set {missing.args[0]}; authserver client create prints the credentials")
    try:
        asyncio.run(run(options, provider))
    except* httpx2.HTTPError as group:
        sys.exit(f"agent: no response ({first(group)}). Are both servers running?")
    except* (MCPError, OAuthFlowError, ToolFailed) as group:
        sys.exit(f"agent: failed: {first(group)}")
    except* KeyboardInterrupt:
        sys.exit("agent: stopped")


def first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the first exception in nested groups."""
    cause: BaseException = group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause


if __name__ == "__main__":
    main()
