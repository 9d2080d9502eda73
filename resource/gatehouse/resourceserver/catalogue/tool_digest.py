"""The digest of a tool as an operator confirmed it, so that a later change of the upstream is noticed."""

import hashlib
from collections.abc import Mapping
from typing import Any

import rfc8785


def tool_digest(tool: Mapping[str, Any]) -> str:
    """Return `sha256:` and the hexadecimal digest of the canonical JSON (RFC 8785) of a whole tool.

    The tool is as the upstream listed it, with every member, also annotations and those that are unknown here.

    Raises:
        ValueError: it has no canonical JSON, such as for an integer beyond 2**53. The text contains no value.
    """
    try:
        document = rfc8785.dumps(dict(tool))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"the tool has no canonical JSON (RFC 8785): it has {_reason(error)}") from None
    return f"sha256:{hashlib.sha256(document).hexdigest()}"


def _reason(error: Exception) -> str:
    if isinstance(error, rfc8785.IntegerDomainError):
        return "an integer beyond 2**53 - 1, which not every parser reads exactly"
    if isinstance(error, rfc8785.FloatDomainError):
        return "NaN or an infinity"
    if isinstance(error, RecursionError):
        return "too many levels of nesting"
    return "text with half of a surrogate pair, or a value that is not JSON"
