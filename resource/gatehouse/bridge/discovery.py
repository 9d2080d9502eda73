"""Where tokens for a resource come from: the issuer that the client trusts, and its token endpoint.

A client's credentials belong to one issuer (MCP 2026-07-28, "Authorization Server Binding"). Were the MCP server
alone to say where they go, a hostile or deceived one would collect them.
"""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import anyio
import httpx2

from gatehouse.bridge.failures import Failure, busy, not_reached
from gatehouse.shared.protocol import strict_json
from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_loopback,
    is_protected_transport,
    parse_resource_identifier,
)

AUTHORIZATION_SERVER: Final = "authorization server"
MCP_SERVER: Final = "MCP server"

_TIMEOUT: Final = 20
"""Seconds for one document, or for one token."""

_MAX_LENGTH: Final = 64 * 1024
"""Bytes of an answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response that was read to its end."""

    status: int
    document: Any
    """The JSON; None where there was none."""


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """Where one issuer gives tokens."""

    issuer: str
    url: str


async def exchange(http: httpx2.AsyncClient, server: str, request: httpx2.Request) -> Answer:
    """Send a request of ours and read its JSON: no redirects, at most 64 KiB, 20 s in all.

    Raises:
        Failure: the server does not answer, or asks to come back later.
    """
    url = f"{request.url.scheme}://{request.url.netloc.decode('ascii')}"
    # Unpacked, a small answer could be a large one.
    request.headers.update({"Accept": "application/json", "Accept-Encoding": "identity"})
    try:
        with anyio.fail_after(_TIMEOUT):
            response = await http.send(request, stream=True, follow_redirects=False)
            try:
                document = await _read(response)
            finally:
                await response.aclose()
    except (httpx2.HTTPError, TimeoutError) as error:
        raise not_reached(server, url, error) from None
    if response.status_code in {429, 503}:
        raise busy(server, url, response.status_code)
    return Answer(response.status_code, document)


async def _read(response: httpx2.Response) -> Any:
    if response.headers.get("content-encoding", "identity") != "identity":
        return None
    document = bytearray()
    async for chunk in response.aiter_bytes():
        document += chunk
        if len(document) > _MAX_LENGTH:
            return None
    try:
        return strict_json.loads(bytes(document))
    except strict_json.InvalidJson:
        return None


async def find_token_endpoint(http: httpx2.AsyncClient, resource: str, pinned: str | None) -> TokenEndpoint:
    """Return the token endpoint of the issuer that was named, or of the one that the resource may name.

    Raises:
        Failure: a document cannot be had or is not what it should be, or the issuer may not be taken on the
            resource's word.
    """
    issuer = pinned or _acceptable_issuer(resource, await _named_issuer(http, resource))
    metadata = await _first_document(http, AUTHORIZATION_SERVER, [_well_known(issuer, "oauth-authorization-server")])
    url = metadata.get("token_endpoint")
    # Exactly: a document of another issuer would have the credentials sent there (RFC 8414 3.3).
    if metadata.get("issuer") != issuer:
        raise Failure(f"The metadata at {issuer} is of another issuer. No credential was sent. Check --issuer.")
    if not isinstance(url, str) or not is_protected_transport(url):
        raise Failure(f"The metadata of {issuer} names no https token endpoint. No credential was sent.")
    return TokenEndpoint(issuer, url)


async def _named_issuer(http: httpx2.AsyncClient, resource: str) -> str:
    """Return the issuer that the protected resource metadata names (RFC 9728 3)."""
    metadata = await _first_document(http, MCP_SERVER, _resource_metadata_urls(resource))
    issuers = metadata.get("authorization_servers")
    try:
        named = parse_resource_identifier(str(metadata.get("resource")))
    except InvalidResourceIdentifier:
        named = ""
    if named != resource:
        raise Failure(f"The MCP server at {resource} is registered under another URL. Start the bridge with that URL.")
    if not isinstance(issuers, list) or not issuers or not isinstance(issuers[0], str):
        raise Failure(f"The MCP server at {resource} names no authorization server. Name it: --issuer URL")
    return issuers[0]


def _acceptable_issuer(resource: str, issuer: str) -> str:
    """Return an issuer that a resource may name: on its own origin, or on this machine as it is itself."""
    same_origin = urlsplit(issuer)[:2] == urlsplit(resource)[:2]
    this_machine = is_loopback(issuer) and is_loopback(resource)
    if not is_protected_transport(issuer) or not (same_origin or this_machine):
        raise Failure(
            f"The MCP server at {resource} names the authorization server {issuer[:200]}, which is on another host."
            " No credential was sent: a server's word does not decide where credentials go. If they were issued"
            " there, name it when you start the bridge: --issuer URL"
        )
    return issuer


def _resource_metadata_urls(resource: str) -> list[str]:
    """Return where a resource's metadata may stand: before its path, then at the root (RFC 9728 3.1)."""
    first = _well_known(resource, "oauth-protected-resource")
    return list(dict.fromkeys((first, first.removesuffix(urlsplit(resource).path.rstrip("/")))))


def _well_known(url: str, name: str) -> str:
    """Return where a document stands: with the URL's path behind the well-known one (RFC 8414 3.1; RFC 9728 3.1)."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}/.well-known/{name}{parts.path.rstrip('/')}"


async def _first_document(http: httpx2.AsyncClient, server: str, urls: list[str]) -> dict[str, Any]:
    for url in urls:
        answer = await exchange(http, server, http.build_request("GET", url))
        if answer.status == httpx2.codes.OK and isinstance(answer.document, dict):
            return answer.document
    raise Failure(
        f"The {server} has no metadata at {urls[0]} (status {answer.status}). Check the URL and --issuer.",
        temporary=answer.status >= 500,
    )
