"""Fetches documents of the issuer over HTTP: its key set and its status lists."""

import httpx2

from gatehouse.resourceserver.settings import CA_FILE_SETTING, Settings
from gatehouse.shared.protocol.status_list import MEDIA_TYPE
from gatehouse.shared.service import fetch
from gatehouse.shared.service.fetch import TIMEOUT, Fetch, Source, http_client
from gatehouse.shared.service.tls import tls_context

_ISSUER = Source(
    content_types=(MEDIA_TYPE, "application/jwk-set+json", "application/json"),
    # The names of MAX_LISTS status lists need most of it.
    max_length=512 * 1024,
    ca_setting=CA_FILE_SETTING,
    server="the authorization server",
)


def create_http(settings: Settings) -> httpx2.AsyncClient:
    """Return the HTTP client for the issuer.

    Raises:
        InvalidSettings: the trusted certificate authorities cannot be loaded.
    """
    return http_client(tls_context(settings.ca_file, CA_FILE_SETTING))


def http_fetch(client: httpx2.AsyncClient, url: str, *, timeout: float = TIMEOUT) -> Fetch:
    """Return a fetch of a document of the issuer, of at most 512 KiB."""
    return fetch.http_fetch(client, url, _ISSUER, timeout=timeout)
