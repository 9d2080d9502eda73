"""What the server publishes: its protected resource metadata (RFC 9728), and the keys that sign who calls."""

from typing import Any, Final
from urllib.parse import urlsplit

from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.http import Endpoint, Request, Response, json_response
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.resource_metadata import WELL_KNOWN, metadata_document, metadata_url

CALLER_KEYS_PATH: Final = "/.well-known/gatehouse-caller/jwks.json"
"""Where an upstream finds the keys that sign who calls. An authorization server on the same host has another path."""


def metadata_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths of the document (RFC 9728 section 3.1): with the resource's path, then at the root."""
    return tuple(dict.fromkeys((urlsplit(metadata_url(settings.resource)).path, WELL_KNOWN)))


def protected_resource_metadata(settings: Settings, catalogue: Catalogue) -> dict[str, Any]:
    """Return the document. Its scopes come from the catalogue, which the policy enforces."""
    return metadata_document(settings.resource, settings.issuer, catalogue.scopes, catalogue.name)


def metadata_endpoint(settings: Settings, catalogue: Catalogue) -> Endpoint:
    """Return the endpoint that publishes the document."""
    published: tuple[object, Response] | None = None

    async def endpoint(_: Request) -> Response:
        nonlocal published
        # A catalogue whose scopes change gets another mapping of them.
        if published is None or published[0] is not catalogue.scopes:
            document = protected_resource_metadata(settings, catalogue)
            published = catalogue.scopes, json_response(document, headers={"Cache-Control": "public, max-age=300"})
        return published[1]

    return endpoint


def key_set_endpoint(document: bytes) -> Endpoint:
    """Return the endpoint that publishes a key set (RFC 7517 5)."""
    headers = [(b"content-type", b"application/jwk-set+json"), (b"cache-control", b"public, max-age=300")]

    async def endpoint(_: Request) -> Response:
        return Response(200, document, headers)

    return endpoint
