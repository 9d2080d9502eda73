"""HTTP of the bridge and of `resourceserver token`: the client, and one request with a JSON response."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio
import httpx2

from gatehouse.bridge.errors import retry_later, unreachable
from gatehouse.bridge.limits import is_compressed
from gatehouse.bridge.settings import BRIDGE, CA_FILE_SETTING, SettingNames
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.service.tls import tls_context

_RESPONSE_TIMEOUT: Final = 300
"""Seconds without a byte from the remote server before a call fails."""

_TIMEOUT: Final = 20
"""Seconds for one exchange: the request and its whole response."""

_MAX_LENGTH: Final = 64 * 1024
"""Bytes of a response."""


@dataclass(frozen=True, slots=True)
class JsonResponse:
    """A response that was read completely."""

    status: int
    document: Any
    """The parsed JSON; None if the body is too long, compressed, or not JSON."""


def create_http(auth: httpx2.Auth | None = None, ca_file: Path | None = None) -> httpx2.AsyncClient:
    """Return an HTTP client that uses the environment's proxies for https only.

    Plain http is allowed only on loopback, and a proxy would carry it to another machine. Raises InvalidSettings if the
    trusted certificate authorities cannot be loaded.
    """
    context = tls_context(ca_file, CA_FILE_SETTING)
    return httpx2.AsyncClient(
        auth=auth,
        verify=context,
        timeout=httpx2.Timeout(10, read=_RESPONSE_TIMEOUT),
        mounts={"http://": httpx2.AsyncHTTPTransport(verify=context, trust_env=False)},
    )


async def exchange(
    http: httpx2.AsyncClient, server: str, request: httpx2.Request, names: SettingNames = BRIDGE
) -> JsonResponse:
    """Send a request and read its JSON response: no redirects, at most 64 KiB, 20 s in all.

    Args:
        http: the client to send it with.
        server: what the server is, such as `AUTHORIZATION_SERVER`, for error messages.
        request: the request.
        names: for error messages.

    Raises:
        BridgeError: the server does not respond, or answers 429 or 503.
    """
    url = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
    request.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
    try:
        with anyio.fail_after(_TIMEOUT):
            response = await http.send(request, stream=True, follow_redirects=False)
            try:
                document = await _read(response)
            finally:
                await response.aclose()
    except (httpx2.HTTPError, OSError) as error:
        raise unreachable(server, url, error, names) from None
    if response.status_code in {429, 503}:
        raise retry_later(server, url, response.status_code, response.headers.get("retry-after"))
    return JsonResponse(response.status_code, document)


async def _read(response: httpx2.Response) -> Any:
    if is_compressed(response):
        return None
    document = bytearray()
    async for chunk in response.aiter_bytes():
        document += chunk
        if len(document) > _MAX_LENGTH:
            return None
    try:
        return parse_json(bytes(document))
    except InvalidJson:
        return None
