"""The server's protected resource metadata (RFC 9728): its authorization server and its scopes."""

from typing import Any
from urllib.parse import urlsplit

from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.http import Endpoint, Request, Response, json_response
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.resource_metadata import WELL_KNOWN, metadata_document, metadata_url
from gatehouse.shared.protocol.scopes import parse_scope
from gatehouse.shared.service.settings import InvalidSettings


def metadata_paths(settings: Settings) -> tuple[str, ...]:
    """Return the paths of the document (RFC 9728 section 3.1): with the resource's path, then at the root."""
    return tuple(dict.fromkeys((urlsplit(metadata_url(settings.resource)).path, WELL_KNOWN)))


def protected_resource_metadata(settings: Settings, catalogue: Catalogue) -> dict[str, Any]:
    """Return the document. Its scopes come from the catalogue, which the policy enforces."""
    return metadata_document(settings.resource, settings.issuer, catalogue.scopes, catalogue.name)


def metadata_endpoint(settings: Settings, catalogue: Catalogue) -> Endpoint:
    """Return the endpoint that publishes the document."""
    response = json_response(
        protected_resource_metadata(settings, catalogue), headers={"Cache-Control": "public, max-age=300"}
    )

    async def endpoint(_: Request) -> Response:
        return response

    return endpoint


def baseline_scopes(settings: Settings, catalogue: Catalogue) -> frozenset[str]:
    """Return the scopes that every 401 names.

    Raises:
        InvalidSettings: one of them is not in the catalogue.
    """
    if settings.baseline_scopes is None:
        return frozenset(catalogue.scopes)
    baseline = parse_scope(settings.baseline_scopes)
    if unknown := sorted(baseline - catalogue.scopes.keys()):
        raise InvalidSettings(
            f"RESOURCESERVER_BASELINE_SCOPES: {unknown[0]} is not a scope of the catalogue. "
            f"There are: {', '.join(catalogue.scopes)}."
        )
    return baseline
