"""The HTTP client of the bridge and of `resourceserver token`."""

from pathlib import Path
from typing import Final

import httpx2

from gatehouse.bridge.settings import CA_FILE_SETTING
from gatehouse.shared.service.tls import tls_context

_RESPONSE_TIMEOUT: Final = 300
"""Seconds without a byte from the remote server before a call fails."""


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
