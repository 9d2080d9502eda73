"""The digest of a tool as an operator confirmed it, so that a later change of the upstream is noticed."""

from collections.abc import Mapping
from typing import Any


def tool_digest(tool: Mapping[str, Any]) -> str:
    """Return `sha256:` and the hexadecimal digest of the canonical JSON (RFC 8785) of a whole tool.

    The tool is as the upstream listed it, with every member, also annotations and those that are unknown here.

    Raises:
        ValueError: it has no canonical JSON, such as for an integer beyond 2**53.
    """
    raise NotImplementedError
