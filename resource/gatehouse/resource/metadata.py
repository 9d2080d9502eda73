"""The server's own protected resource metadata (RFC 9728): where tokens come from, and which scopes there are."""

from typing import Any

from gatehouse.resource.catalogue import Catalogue
from gatehouse.resource.protected_resource import WELL_KNOWN, metadata_address, metadata_document
from gatehouse.resource.settings import Settings


def metadata_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths that the document stands at: the path form first (RFC 9728 3.1), then the root form."""
    path = "" if settings.endpoint_path == "/" else settings.endpoint_path
    return tuple(dict.fromkeys((f"{WELL_KNOWN}{path}", WELL_KNOWN)))


def metadata_url(settings: Settings) -> str:
    """Return the URL that challenges point to (RFC 9728 5.1)."""
    return metadata_address(settings.resource)


def protected_resource_metadata(settings: Settings, catalogue: Catalogue) -> dict[str, Any]:
    """Return the document. Scopes come from the catalogue, so that they cannot differ from what is enforced."""
    return metadata_document(settings.resource, settings.issuer, catalogue.scopes, catalogue.name)
