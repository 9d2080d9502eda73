"""The only way to a resource: the policy decides here again, as in dispatch/tools.py for tools.

The contents are the same for every caller, so they are created once, when the server starts.
"""

import logging
from collections.abc import Awaitable, Callable

from mcp.shared.exceptions import MCPError
from mcp_types import (
    ListResourcesResult,
    ListResourceTemplatesResult,
    PaginatedRequestParams,
    ReadResourceRequestParams,
    ReadResourceResult,
    TextResourceContents,
)
from mcp_types import Resource as ResourceDescription

from gatehouse.resourceserver import json_rpc, policy
from gatehouse.resourceserver.bearer import verified_request
from gatehouse.resourceserver.bearer.verified_request import Context, VerifiedRequest
from gatehouse.resourceserver.catalogue import Catalogue, Resource
from gatehouse.resourceserver.denial import Denial, deny
from gatehouse.resourceserver.dispatch.runner import event_of
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.writer import AuditUnavailable, AuditWriter
from gatehouse.shared.service.requests import UNAVAILABLE

_ACTION = AuditAction.RESOURCE_READ
"""The audit action of a read."""

_JSON = "application/json"

log = logging.getLogger(__name__)

Refuse = Callable[[AuditEvent, Denial], Awaitable[MCPError]]
"""Records a refusal, and returns the error to raise."""


class ResourceDispatch:
    """Lists and reads the resources of a catalogue, for callers that the gate verified."""

    def __init__(self, catalogue: Catalogue, identifier: str, audit: AuditWriter, refuse: Refuse) -> None:
        """`identifier` is the resource identifier of this server (RFC 8707). Raises InvalidCatalogue as `contents`."""
        self._catalogue = catalogue
        self._audit = audit
        self._refuse = refuse
        self._identifier = identifier
        catalogue.contents(identifier)

    async def list_resources(self, context: Context, params: PaginatedRequestParams | None) -> ListResourcesResult:
        """List the resources that the caller may read, in a fixed order.

        Raises:
            MCPError: the request was not verified, or has a cursor, although the list has one page.
        """
        request = verified_request.require(context)
        refuse_cursor(params)
        resources = policy.readable_resources(self._catalogue, request.claims)
        return ListResourcesResult(resources=[_describe(found) for found in resources], ttl_ms=0, cache_scope="private")

    async def list_templates(
        self, context: Context, params: PaginatedRequestParams | None
    ) -> ListResourceTemplatesResult:
        """Return the empty list: there are no templates. Raises MCPError as list_resources does."""
        verified_request.require(context)
        refuse_cursor(params)
        return ListResourceTemplatesResult(resource_templates=[], ttl_ms=0, cache_scope="private")

    async def read_resource(self, context: Context, params: ReadResourceRequestParams) -> ReadResourceResult:
        """Decide, record, answer.

        Raises:
            MCPError: the request was not verified, the resource is unknown (MCP SEP-2164), the caller's scopes do not
                suffice, or the read cannot be recorded.
        """
        request = verified_request.require(context)
        resource = await self._allowed_resource(request, params.uri)
        try:
            self._audit.record(event_of(request, _ACTION, resource.uri, "allowed"))
        except AuditUnavailable:
            log.error("a read of %s cannot be recorded", resource.uri)
            raise MCPError(json_rpc.UNAVAILABLE, UNAVAILABLE) from None
        text = self._catalogue.contents(self._identifier)[resource.uri]
        contents = TextResourceContents(uri=resource.uri, mime_type=_JSON, text=text)
        return ReadResourceResult(contents=[contents], ttl_ms=0, cache_scope="private")

    async def _allowed_resource(self, request: VerifiedRequest, uri: str) -> Resource:
        decision = policy.decide_read(self._catalogue, request.claims, uri)
        if isinstance(decision, policy.Allowed):
            return decision.target
        denial = deny(decision, "resource", uri)
        raise await self._refuse(event_of(request, _ACTION, uri, "refused", denial.reason), denial)


def refuse_cursor(params: PaginatedRequestParams | None) -> None:
    """Refuse a cursor, because every list here has one page. Raises MCPError."""
    if params is not None and params.cursor is not None:
        raise MCPError(json_rpc.INVALID_PARAMS, "The list has one page: send no cursor.")


def _describe(resource: Resource) -> ResourceDescription:
    return ResourceDescription(uri=resource.uri, name=resource.name, description=resource.description, mime_type=_JSON)
