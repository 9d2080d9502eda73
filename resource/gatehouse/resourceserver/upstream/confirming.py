"""Writes the digests of confirmed tools into the text of a policy file, whose comments and order stay."""

from collections.abc import Mapping, Set
from typing import Any

import tomlkit
from tomlkit.exceptions import TOMLKitError
from tomlkit.items import AbstractTable, Item, Table

from gatehouse.resourceserver.upstream.drafting import TO_BE_CONFIRMED


def with_digests(text: str, digests: Mapping[str, str], scopes: Set[str]) -> str:
    """Return the text of a policy file with digests, and without the remark "to be confirmed" where they are.

    Args:
        text: a valid policy file.
        digests: the digests by the names of tools that it declares.
        scopes: the scopes of these tools, which are confirmed with them.

    Raises:
        ValueError: the file is written in a way that this function cannot edit.
    """
    newline = "\r\n" if "\r\n" in text else "\n"
    try:
        document: Any = tomlkit.parse(text)
        for name, digest in digests.items():
            _write_digest(document["tools"][name], digest, newline)
        for scope in scopes:
            _confirm(document["scopes"][scope])
        return str(document.as_string())
    except (TOMLKitError, AttributeError, TypeError) as error:
        raise ValueError("the file cannot be edited") from error


def _write_digest(tool: Any, digest: str, newline: str) -> None:
    scopes = "scopes" if "scopes" in tool else "any_valid_token"
    # A table whose parts are in several places is a proxy, which has no items.
    before: Any = tool.item(scopes) if isinstance(tool, AbstractTable) else tool[scopes]
    _confirm(before)
    if "digest" in tool or not isinstance(tool, Table):
        tool["digest"] = digest
        return
    item = tomlkit.string(digest)
    item.trivia.indent, item.trivia.trail = before.trivia.indent, newline
    # To append it would put it behind comments that belong to the next table.
    tool.value._insert_after(scopes, "digest", item)  # noqa: SLF001 - of tomlkit, which has no public method for it


def _confirm(item: object) -> None:
    """Remove the remark "to be confirmed" behind a value or a header."""
    if isinstance(item, Item) and item.trivia.comment.startswith(TO_BE_CONFIRMED):
        item.trivia.comment = item.trivia.comment_ws = ""
