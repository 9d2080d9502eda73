"""The SDK's low-level server with the handlers of dispatch, and no others."""

from importlib.metadata import version
from typing import Any

from mcp.server import Server

from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.dispatch.containment import contain
from gatehouse.resourceserver.dispatch.resources import ResourceDispatch
from gatehouse.resourceserver.dispatch.tools import ToolDispatch
from gatehouse.shared.service.audit.writer import AuditWriter

CLIENT_CREDENTIALS = "io.modelcontextprotocol/oauth-client-credentials"
"""The extension that tells clients that tokens are issued without a user."""

# Read once: it is in a file.
_VERSION = version("gatehouse")

_INSTRUCTIONS = "Tools that this client may not call are not listed."


def build_server(catalogue: Catalogue, tools: ToolDispatch, audit: AuditWriter, resource: str) -> Server[Any]:
    """Return the MCP server of a catalogue. Prompts, completion and subscriptions are not served.

    Args:
        catalogue: the tools and resources to serve.
        tools: the dispatch of the catalogue's tools.
        audit: the audit log.
        resource: the resource identifier of the server (RFC 8707).
    """
    resources = ResourceDispatch(catalogue, resource, audit, tools.refuse)
    server: Server[Any] = Server(
        catalogue.name,
        version=_VERSION,
        instructions=catalogue.instructions or _INSTRUCTIONS,
        get_tool_input_schema=tools.input_schema,
        on_list_tools=tools.list_tools,
        on_call_tool=tools.call_tool,
        on_list_resources=resources.list_resources,
        on_list_resource_templates=resources.list_templates,
        on_read_resource=resources.read_resource,
    )
    server.extensions[CLIENT_CREDENTIALS] = {}
    # Without OpenTelemetry's middleware: nothing exports its spans (docs/decisions/0006-sdk-internals.md).
    server.middleware[:] = [contain]
    return server
