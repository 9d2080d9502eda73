"""One access token, for a program that ends when it has it."""

import time

import anyio

from gatehouse.bridge.credentials import Credentials
from gatehouse.bridge.http_client import create_http
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.bridge.token_cache import StoredToken
from gatehouse.bridge.tokens import TokenSource
from gatehouse.shared.service.logs import configure_logs


def obtain_token(
    settings: BridgeSettings, resource: str, issuer: str | None, credentials: Credentials, scope: str
) -> StoredToken:
    """Request an access token.

    Args:
        settings: of the client.
        resource: the canonical resource identifier.
        issuer: the only issuer that may receive the credentials; None for the one that the resource names.
        credentials: of the client.
        scope: the scopes to request; empty for all that are granted.

    Raises:
        BridgeError: no token is issued.
        InvalidSettings: the trusted certificate authorities cannot be loaded.
    """
    configure_logs("console", settings.log_level)
    return anyio.run(_obtain, settings, resource, issuer, credentials, scope)


async def _obtain(
    settings: BridgeSettings, resource: str, issuer: str | None, credentials: Credentials, scope: str
) -> StoredToken:
    async with create_http(ca_file=settings.ca_file) as http:
        token = await TokenSource(http, resource, issuer, lambda: credentials, scope=scope).current()
    return StoredToken(token.value, token.scope, time.time() + token.expires_at - time.monotonic())
