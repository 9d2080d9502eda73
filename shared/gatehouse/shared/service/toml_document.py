"""Reads a TOML document, and finds the line of a key, so that a problem can be reported where it is.

The standard library's parser keeps no positions. The lines are therefore found in a second pass, and only if there is a
problem to report.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from gatehouse.shared.protocol.redaction import printable

KeyPath = tuple[str, ...]
"""The keys that lead to a value, from the outermost table inwards."""

_POSITION: Final = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)\Z")
"""Where the parser stopped, at the end of its message."""

_END: Final = re.compile(r"[\]}]|\"\"\"|'''")
"""What the last line of a statement of several lines contains: it is an array, a table or a multi-line string."""

_DEPTH: Final = 8
"""Keys of a path whose line is known."""


class InvalidToml(ValueError):
    """The text is not TOML. The message begins with the line, if the parser says where it stopped."""


@dataclass(frozen=True)
class TomlDocument:
    """A document, and the lines of its keys."""

    text: str
    content: Mapping[str, Any]

    def line(self, path: KeyPath) -> int:
        """Return the line, from 1, of the first statement that names a key, or else the table around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    @cached_property
    def _lines(self) -> Mapping[KeyPath, int]:
        lines: dict[KeyPath, int] = {}
        table: KeyPath = ()
        for line, statement in _statements(self.text):
            paths = list(_paths(statement.content))
            if statement.text.lstrip().startswith("["):
                table = paths[-1]
            else:
                paths = [(*table, *path) for path in paths]
            for path in paths:
                lines.setdefault(path, line)
        return lines


def parse_toml(text: str) -> TomlDocument:
    """Parse TOML 1.0.

    Raises:
        InvalidToml: with the first error; the parser does not read on.
    """
    try:
        return TomlDocument(text, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        found = _POSITION.search(str(error))
        reason = str(error)[: found.start()] if found else str(error)
        line = int(found[1]) if found and found[1] else text.rstrip().count("\n") + 1
        raise InvalidToml(f"line {line}: {printable(reason)}") from None
    except (RecursionError, ValueError):
        raise InvalidToml("an array is nested too deep, or a number has thousands of digits") from None


def _statements(text: str) -> Iterator[tuple[int, TomlDocument]]:
    """Yield each statement of a valid document, parsed alone, with the line where it begins."""
    pending: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), 1):
        pending.append(line)
        if len(pending) > 1 and not _END.search(line):
            continue
        statement = "\n".join(pending)
        try:
            content = tomllib.loads(statement)
        except tomllib.TOMLDecodeError:
            # An array or a string that continues in the next line.
            continue
        yield number - len(pending) + 1, TomlDocument(statement, content)
        pending = []


def _paths(content: Mapping[str, Any], depth: int = _DEPTH) -> Iterator[KeyPath]:
    """Yield the path of every key within tables, the outer ones first."""
    for key, value in content.items():
        yield (key,)
        if isinstance(value, dict) and depth > 1:
            yield from ((key, *path) for path in _paths(value, depth - 1))
