"""The life of a bridge: from its start by an assistant to the end of standard input."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import anyio
import httpx2
import structlog
from mcp.server.stdio import stdio_server
from mcp.shared.exceptions import MCPError
from mcp_types import DiscoverResult, Implementation

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.failures import Failure
from gatehouse.bridge.remote import Remote
from gatehouse.bridge.server import Bridge, create_server, initialization
from gatehouse.bridge.tokens import BearerAuth, TokenSource

_ANSWER_TIMEOUT: Final = 300
"""Seconds without a byte from the remote server before a call counts as broken off."""

_START_TIMEOUT: Final = 10
"""Seconds that the remote server has to say who it is before the assistant is answered without."""

log = structlog.stdlib.get_logger(__name__)


async def serve(url: str, issuer: str | None, credentials: Callable[[], Credentials]) -> None:
    """Serve over standard input and output until the input ends.

    Args:
        url: the resource identifier of the remote server, canonical.
        issuer: the only issuer that the credentials may go to; None for one that the remote server may name.
        credentials: read anew for each token. Raises InvalidCredentials.
    """
    own = Implementation(name="gatehouse-bridge", version=version("gatehouse"))
    async with create_http() as to_issuer:
        tokens = TokenSource(to_issuer, url, issuer, credentials)
        async with create_http(BearerAuth(tokens)) as to_remote:
            remote = Remote(url, to_remote, own)
            server = create_server(Bridge(remote, tokens), await _discover(remote), own)
            async with stdio_server() as (incoming, outgoing):
                await server.run(incoming, outgoing, initialization(server))


def create_http(auth: httpx2.Auth | None = None) -> httpx2.AsyncClient:
    """Return an HTTP client that uses the environment's proxies for https alone.

    Plain http is for this machine only, and a proxy would carry it elsewhere.
    """
    return httpx2.AsyncClient(
        auth=auth,
        timeout=httpx2.Timeout(10, read=_ANSWER_TIMEOUT),
        mounts={"http://": httpx2.AsyncHTTPTransport(trust_env=False)},
    )


async def _discover(remote: Remote) -> DiscoverResult | None:
    """Return what the remote server has; None when it does not answer now: each request then says why."""
    with anyio.move_on_after(_START_TIMEOUT):
        try:
            return await remote.discover()
        except (Failure, MCPError) as error:
            log.warning("the remote server does not say what it has; it is taken to have tools only", reason=str(error))
    return None
