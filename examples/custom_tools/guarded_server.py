"""An MCP server written with the SDK, and the table of scopes that protects it."""

from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.mcpserver import MCPServer
from mcp_types import ToolAnnotations

from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Scope
from gatehouse.resourceserver.catalogue.mcpserver import guarded_catalogue

server = MCPServer("Clock tower")
BELLS = {"noon": 12, "curfew": 9}


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def caller() -> str:
    """Return the client_id of the caller."""
    token = get_access_token()
    if token is None:
        raise PermissionError("called without the guard")
    return token.client_id


@server.tool(annotations=ToolAnnotations(read_only_hint=True))
def list_bells() -> dict[str, int]:
    """List the bells and how often each strikes."""
    return BELLS


@server.tool()
def ring_bell(name: str) -> str:
    """Ring a bell."""
    return "dong " * BELLS[name]


@server.tool()
def melt_bells() -> str:
    """Not in the table below, so clients cannot call it."""
    BELLS.clear()
    return "molten"


# The server is unchanged up to here. The table:

CATALOGUE = guarded_catalogue(
    server,
    scopes={"caller": ANY_VALID_TOKEN, "list_bells": ["bells:see"], "ring_bell": ["bells:ring"]},
    declared=[
        Scope("bells:see", "See the bells"),
        Scope("bells:ring", "Ring a bell", implies=("bells:see",)),
    ],
)
