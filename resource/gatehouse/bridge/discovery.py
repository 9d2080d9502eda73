"""Finds the token endpoint for a resource: the issuer's metadata, and the resource's where no issuer is configured.

A client's credentials belong to one issuer (MCP 2026-07-28, "Authorization Server Binding"). If the MCP server alone
decided where they are sent, a hostile or compromised server could collect them.
"""

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx2

from gatehouse.bridge.errors import AUTHORIZATION_SERVER, MCP_SERVER, BridgeError
from gatehouse.bridge.http_client import exchange
from gatehouse.bridge.settings import BRIDGE, SettingNames
from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_loopback,
    parse_resource_identifier,
)
from gatehouse.shared.service.fetch import is_fetchable


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """The token endpoint of an issuer."""

    issuer: str
    url: str


async def find_token_endpoint(
    http: httpx2.AsyncClient, resource: str, pinned: str | None, names: SettingNames = BRIDGE
) -> TokenEndpoint:
    """Return the token endpoint of the pinned issuer, or of the issuer that the resource's metadata names.

    Raises:
        BridgeError: a metadata document is unavailable or invalid, or the resource names an issuer on another origin.
    """
    issuer = pinned or _require_trusted(resource, await _advertised_issuer(http, resource, names))
    urls = [_well_known(issuer, "oauth-authorization-server")]
    metadata = await _first_document(http, AUTHORIZATION_SERVER, urls, names)
    url = metadata.get("token_endpoint")
    # Compared exactly: another issuer's document would send the credentials to that issuer (RFC 8414 section 3.3).
    if metadata.get("issuer") != issuer:
        raise BridgeError(
            f"The metadata at {issuer} belongs to a different issuer{_slash(metadata.get('issuer'), issuer)}. No"
            f" credential was sent. Check {names.issuer}."
        )
    if not isinstance(url, str) or not is_fetchable(url):
        raise BridgeError(f"The metadata of {issuer} has no https token endpoint. No credential was sent.")
    return TokenEndpoint(issuer, url)


def _slash(named: object, issuer: str) -> str:
    """Return how the issuer that metadata name differs from the expected one, if it is by a slash at the end."""
    if named == f"{issuer}/" or f"{named}/" == issuer:
        return f", {named}: they differ by the slash at the end"
    return ""


async def _advertised_issuer(http: httpx2.AsyncClient, resource: str, names: SettingNames) -> str:
    """Return the issuer that the protected resource metadata names (RFC 9728 section 3)."""
    metadata = await _first_document(http, MCP_SERVER, _resource_metadata_urls(resource), names)
    issuers = metadata.get("authorization_servers")
    try:
        named = parse_resource_identifier(str(metadata.get("resource")))
    except InvalidResourceIdentifier:
        named = ""
    if named != resource:
        raise BridgeError(f"The MCP server at {resource} is registered under another URL. Use that one.")
    if not isinstance(issuers, list) or not issuers or not isinstance(issuers[0], str):
        raise BridgeError(f"The MCP server at {resource} names no authorization server. Set it with --issuer URL.")
    return issuers[0]


def _require_trusted(resource: str, issuer: str) -> str:
    """Return the issuer if the resource may name it: same origin, or both on loopback. Raises BridgeError."""
    if not is_fetchable(issuer) or not _is_on_the_same_host(issuer, resource):
        raise BridgeError(
            f"The MCP server at {resource} names the authorization server {issuer[:200]}, which is on another host."
            " No credential was sent, because an MCP server must not decide where credentials go. If that server"
            " issued them, name it with --issuer URL."
        )
    return issuer


def _is_on_the_same_host(issuer: str, resource: str) -> bool:
    return urlsplit(issuer)[:2] == urlsplit(resource)[:2] or (is_loopback(issuer) and is_loopback(resource))


def _resource_metadata_urls(resource: str) -> list[str]:
    """Return both well-known URLs of a resource's metadata: with its path, then at the root (RFC 9728 section 3.1)."""
    first = _well_known(resource, "oauth-protected-resource")
    return list(dict.fromkeys((first, first.removesuffix(urlsplit(resource).path.rstrip("/")))))


def _well_known(url: str, name: str) -> str:
    """Insert `/.well-known/NAME` between a URL's host and its path (RFC 8414 section 3.1, RFC 9728 section 3.1)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/.well-known/{name}{parts.path.rstrip('/')}"


async def _first_document(
    http: httpx2.AsyncClient, server: str, urls: list[str], names: SettingNames
) -> dict[str, Any]:
    for url in urls:
        response = await exchange(http, server, http.build_request("GET", url), names)
        if response.status == httpx2.codes.OK and isinstance(response.document, dict):
            return response.document
    raise BridgeError(
        f"The {server} has no metadata at {urls[0]} (status {response.status}). Check the URL and {names.issuer}.",
        temporary=response.status >= 500,
    )
