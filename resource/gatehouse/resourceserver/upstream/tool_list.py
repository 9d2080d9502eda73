"""The tools that an upstream lists: all pages, within bounds, and of each tool what the gateway relies on."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from gatehouse.resourceserver.upstream.upstream import OutcomeUnknown
from gatehouse.shared.protocol.encoding import InvalidJson, format_json
from gatehouse.shared.protocol.visible_text import is_visible

_MAX_PAGES: Final = 100
_MAX_TOOLS: Final = 1000
_MAX_CURSOR: Final = 4096
"""Characters of a cursor."""
_MAX_TOOL: Final = 512 * 1024
"""Bytes of the JSON of one tool, most of which are its schemas. `format_json` bounds the depth."""
MAX_LIST: Final = 8 * 1024 * 1024
"""Bytes of the JSON of all tools."""
_MAX_NAME: Final = 128
"""Characters of a tool name (MCP, "Tool Names")."""

_TOOL_MEMBERS: Final[Mapping[str, type]] = {
    "title": str,
    "description": str,
    "outputSchema": dict,
    "annotations": dict,
    "_meta": dict,
}
"""The types of the members that a tool may have, and that the gateway and its clients read."""

ListPage = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]
"""Sends `tools/list` with these parameters, and returns the result. Raises UpstreamError."""


async def collect_tools(list_page: ListPage) -> list[dict[str, Any]]:
    """Return the tools of all pages, in the order of the upstream.

    Raises:
        UpstreamError: a page could not be read.
        OutcomeUnknown: the list is malformed, names a tool twice, or exceeds a bound.
    """
    tools: dict[str, dict[str, Any]] = {}
    cursors: set[str] = set()
    size = 0
    params: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        page = await list_page(params)
        listed = page.get("tools")
        if not isinstance(listed, list):
            raise OutcomeUnknown("the upstream sent a list of tools that is not an array")
        for tool in listed:
            size += _check_tool(tool)
            if tool["name"] in tools:
                raise OutcomeUnknown("the upstream lists two tools with the same name")
            tools[tool["name"]] = tool
        if len(tools) > _MAX_TOOLS or size > MAX_LIST:
            raise OutcomeUnknown(f"the upstream lists more than {_MAX_TOOLS} tools, or {MAX_LIST // 1024**2} MiB")
        cursor = page.get("nextCursor")
        if cursor is None:
            return list(tools.values())
        if not isinstance(cursor, str) or len(cursor) > _MAX_CURSOR or cursor in cursors:
            raise OutcomeUnknown("the upstream sent a cursor twice, or one that is not a short string")
        cursors.add(cursor)
        params = {"cursor": cursor}
    raise OutcomeUnknown(f"the upstream lists its tools on more than {_MAX_PAGES} pages")


def _check_tool(tool: Any) -> int:
    """Return the bytes of a tool. Raises OutcomeUnknown."""
    if not isinstance(tool, dict):
        raise OutcomeUnknown("the upstream lists a tool that is not an object")
    name = tool.get("name")
    if not isinstance(name, str) or not 0 < len(name) <= _MAX_NAME or not is_visible(name):
        raise OutcomeUnknown(f"the upstream lists a tool without a name of 1 to {_MAX_NAME} visible characters")
    if not isinstance(tool.get("inputSchema"), dict):
        raise OutcomeUnknown("the upstream lists a tool whose input schema is not an object")
    if any(name in tool and not isinstance(tool[name], kind) for name, kind in _TOOL_MEMBERS.items()):
        raise OutcomeUnknown("the upstream lists a tool with a member of the wrong type")
    try:
        size = len(format_json(tool).encode())
    except InvalidJson:
        raise OutcomeUnknown("the upstream lists a tool that is nested too deeply") from None
    if size > _MAX_TOOL:
        raise OutcomeUnknown(f"the upstream lists a tool of more than {_MAX_TOOL // 1024} KiB")
    return size
