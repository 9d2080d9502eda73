"""Typed identifiers: a prefix such as `env_` and 26 characters that sort by creation time."""

import re
import secrets
from typing import Annotated, Any, Final

from pydantic import Field

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"
"""Crockford's base 32, in lower case."""

_TIME_CHARACTERS, _RANDOM_CHARACTERS = 10, 16


def new_identifier(prefix: str, now: float) -> str:
    """Return a new identifier: 50 bits of milliseconds since the epoch, then 80 random bits."""
    return f"{prefix}_{_encode(int(now * 1000), _TIME_CHARACTERS)}{_encode(secrets.randbits(80), _RANDOM_CHARACTERS)}"


def _encode(number: int, length: int) -> str:
    return "".join(_ALPHABET[number >> 5 * position & 31] for position in reversed(range(length)))


def _pattern(prefix: str) -> str:
    return f"^{prefix}_[{_ALPHABET}]{{{_TIME_CHARACTERS + _RANDOM_CHARACTERS}}}$"


def is_identifier(text: object, prefix: str = "[a-z]+") -> bool:
    """Return whether a value is an identifier, with the given prefix or any."""
    return isinstance(text, str) and re.fullmatch(_pattern(prefix), text) is not None


def _identifier(prefix: str, entity: str, list_tool: str) -> Any:
    return Field(pattern=_pattern(prefix), description=f"Identifier of {entity}, as returned by {list_tool}.")


EnvironmentId = Annotated[str, _identifier("env", "an environment", "list_environments")]
OrganizationId = Annotated[str, _identifier("org", "an organization", "list_organizations")]
ConnectionId = Annotated[str, _identifier("conn", "a connection", "list_environment_connections")]
McpServerId = Annotated[str, _identifier("mcps", "an MCP server", "list_mcp_servers")]
MemberId = Annotated[str, _identifier("usr", "a member of the workspace", "list_workspace_members")]
