"""The scope grammar (RFC 6749 3.3), scope sets, and which scope implies which.

A scope set is a `frozenset[str]` of scope tokens. Its text form is sorted, so that equal sets have equal text.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

SCOPE_TOKEN = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,128}", re.ASCII)
"""RFC 6749 3.3, `scope-token`. The RFC sets no maximum length."""


class InvalidScopeSyntax(ValueError):
    """The text does not match the grammar of RFC 6749 3.3."""


def parse_scope_token(text: str) -> str:
    """Return `text` if it is one scope token.

    Raises:
        InvalidScopeSyntax: it is empty, too long, or holds a character outside the grammar.
    """
    if SCOPE_TOKEN.fullmatch(text) is None:
        raise InvalidScopeSyntax("A scope is 1 to 128 printable ASCII characters without space, quote or backslash.")
    return text


def parse_scope(text: str) -> frozenset[str]:
    """Parse a space-delimited `scope` value (RFC 6749 3.3). Order and repetition carry no meaning.

    Raises:
        InvalidScopeSyntax: the value is empty, has leading, trailing or doubled spaces, or a bad token.
    """
    tokens = text.split(" ")
    if text and "" in tokens:
        raise InvalidScopeSyntax("Separate scopes by one space, with none before or after them.")
    return frozenset(parse_scope_token(token) for token in tokens)


def format_scope(scopes: Iterable[str]) -> str:
    """Return the `scope` value of a set: its tokens, sorted, joined by one space."""
    return " ".join(sorted(scopes))


def cut_scope(scopes: Iterable[str], length: int = 384) -> str:
    """Return the `scope` value of a set for a message, cut to `length` characters at the end of a token."""
    text = format_scope(scopes)
    return text if len(text) <= length else text[: length + 1].rpartition(" ")[0]


def separator_hint(scopes: Iterable[str]) -> str:
    """Return a hint for unknown scopes that look like several in one (`,` and `;` are in the grammar)."""
    return " Separate scopes by spaces." if any("," in scope or ";" in scope for scope in scopes) else ""


@dataclass(frozen=True, slots=True)
class ScopeHierarchy:
    """Which scopes a scope implies, directly. `{"env:write": {"env:read"}}` lets a writer read.

    MCP 2026-07-28, authorization, "Step-Up Authorization Flow": servers must account for hierarchies
    when they decide whether a token's scopes suffice.
    """

    implies: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def closure(self, scopes: Iterable[str]) -> frozenset[str]:
        """Return the scopes and everything that they imply, directly or through others."""
        reached: set[str] = set()
        pending = list(scopes)
        while pending:
            scope = pending.pop()
            if scope not in reached:
                reached.add(scope)
                pending.extend(self.implies.get(scope, ()))
        return frozenset(reached)

    def minimal(self, scopes: frozenset[str]) -> frozenset[str]:
        """Return the smallest subset that implies the whole set, to name in a challenge."""
        kept = set(scopes)
        for scope in sorted(scopes):
            if scope in self.closure(kept - {scope}):
                kept.discard(scope)
        return frozenset(kept)
