"""Protected resource metadata (RFC 9728): its URL and its content."""

from collections.abc import Iterable
from typing import Any
from urllib.parse import urlsplit

WELL_KNOWN = "/.well-known/oauth-protected-resource"


def metadata_url(resource: str) -> str:
    """Return the URL of a resource's document: the well-known path before the resource's own (RFC 9728 3.1)."""
    parts = urlsplit(resource)
    return f"{parts.scheme}://{parts.netloc}{WELL_KNOWN}{'' if parts.path == '/' else parts.path}"


def metadata_document(resource: str, issuer: str, scopes: Iterable[str], name: str) -> dict[str, Any]:
    """Return the document of a resource whose tokens come from one issuer."""
    return {
        "resource": resource,
        # Issuer identifiers, not metadata URLs (RFC 9728 2).
        "authorization_servers": [issuer],
        "bearer_methods_supported": ["header"],
        "scopes_supported": sorted(scopes),
        "resource_name": name,
    }
