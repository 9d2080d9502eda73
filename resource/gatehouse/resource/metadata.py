"""Protected resource metadata (RFC 9728): where tokens come from, and which scopes there are."""

from typing import Any

from gatehouse.resource.catalogue import Catalogue
from gatehouse.resource.settings import Settings

WELL_KNOWN = "/.well-known/oauth-protected-resource"


def metadata_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths that the document stands at: the path form first (RFC 9728 3.1), then the root form."""
    path = "" if settings.endpoint_path == "/" else settings.endpoint_path
    return tuple(dict.fromkeys((f"{WELL_KNOWN}{path}", WELL_KNOWN)))


def metadata_url(settings: Settings) -> str:
    """Return the URL that challenges point to (RFC 9728 5.1)."""
    return settings.origin + metadata_paths(settings)[0]


def protected_resource_metadata(settings: Settings, catalogue: Catalogue) -> dict[str, Any]:
    """Return the document. Scopes come from the catalogue, so that they cannot differ from what is enforced."""
    return {
        "resource": settings.resource,
        # Issuer identifiers, not metadata URLs (RFC 9728 2).
        "authorization_servers": [settings.issuer],
        "bearer_methods_supported": ["header"],
        "scopes_supported": sorted(catalogue.scopes),
        "resource_name": catalogue.name,
    }
