"""A platform token in a file, as the bridge reads it, and a token request with it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2

from gatehouse.bridge.credentials import Credentials, read_credentials
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.bridge.tokens import TokenSource
from support.clock import FakeClock
from support.fake_servers import ISSUER, RESOURCE, FakeServers
from support.forging import part

NOW = FakeClock().now
WORKLOAD = {
    "iss": "https://cluster.example",
    "sub": "system:serviceaccount:prod:agent",
    "aud": [ISSUER],
    "exp": NOW + 600,
    "kubernetes.io": {"namespace": "not-to-be-shown"},
}
UNREADABLE = "a.b.c"
"""It has the form of a JWT, and holds no JSON."""


def jwt(claims: Any = WORKLOAD) -> str:
    return f"{part({'alg': 'RS256', 'kid': '1'})}.{part(claims)}.c2lnbmF0dXJl"


def from_file(path: Path, **settings: Any) -> Credentials:
    return read_credentials(BridgeSettings(token_file=path, **settings), None)


async def request_token(servers: FakeServers, read: Callable[[], Credentials]) -> TokenSource:
    """Request a token, and return its source."""
    http = httpx2.AsyncClient(transport=httpx2.MockTransport(servers.serve))
    source = TokenSource(http, RESOURCE, ISSUER, read, servers.clock, now=servers.clock)
    await source.current()
    return source
