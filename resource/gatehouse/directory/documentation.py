"""Search in this project's documentation, by section, with SQLite's FTS5. Each process has one index in memory."""

import functools
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from threading import Lock
from typing import Annotated, Final

from pydantic import BaseModel, Field

from gatehouse.directory.text import SearchText
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, ToolGroup

Limit = Annotated[int, Field(ge=1, le=20, description="Maximum number of sections, up to 20.")]

_EXCERPT_WORDS: Final = 48

_HEADING = re.compile(r"#{1,6} +(.+?) *#* *")
_FENCE = re.compile(r" {0,3}(```|~~~)")

_SEARCH = f"""
SELECT file, heading, snippet(section, 2, '', '', '...', {_EXCERPT_WORDS})
FROM section WHERE section MATCH ? ORDER BY bm25(section, 0, 4, 1), rowid LIMIT ?
"""  # noqa: S608 - a constant


tools = ToolGroup()


class DocumentSection(BaseModel):
    """A section of a document that contains some of the words."""

    file: str
    heading: str
    excerpt: str = Field(description="Text around the words, in Markdown; '...' marks omissions.")


class DocumentSearch(BaseModel):
    """The sections found, the best match first."""

    sections: list[DocumentSection]


@tools.tool(scopes=ANY_VALID_TOKEN, read_only=True)
def search_docs(query: SearchText, limit: Limit = 5) -> DocumentSearch:
    """Search the documentation of Gatehouse: how to register clients, grant scopes, read the audit log, and more.

    Send the significant words, in English. There are no operators. If nothing is found, try other words.
    """
    # A plain function runs in a thread: the first search in a process builds the index.
    found = _index().search(query, limit)
    return DocumentSearch(
        sections=[
            DocumentSection(file=section.file, heading=section.heading, excerpt=section.text) for section in found
        ]
    )


@dataclass(frozen=True, slots=True)
class Section:
    """A heading of a document and the text below it, up to the next heading."""

    file: str
    heading: str
    text: str


class Index:
    """A full-text index of sections, usable from any thread."""

    def __init__(self, sections: Iterator[Section]) -> None:
        self._lock = Lock()
        self._database = sqlite3.connect(":memory:", check_same_thread=False)
        self._database.execute(
            "CREATE VIRTUAL TABLE section USING fts5(file UNINDEXED, heading, text, tokenize='porter unicode61')"
        )
        rows = [(section.file, section.heading, section.text) for section in sections]
        self._database.executemany("INSERT INTO section VALUES (?, ?, ?)", rows)

    def search(self, query: str, limit: int) -> list[Section]:
        """Return the sections with any of the query's words, the best match first, with excerpts as their text."""
        # Each word is quoted as an FTS5 string, so the caller's operators and column names have no effect.
        words = " OR ".join('"' + word.replace('"', '""') + '"' for word in query.replace("\0", " ").split())
        if not words:
            return []
        with self._lock:
            rows = self._database.execute(_SEARCH, (words, limit)).fetchall()
        return [Section(file, heading, " ".join(excerpt.split())) for file, heading, excerpt in rows]


@functools.cache
def _index() -> Index:
    return Index(section for file, text in documents() for section in sections_of(file, text))


def documents() -> Sequence[tuple[str, str]]:
    """Return the name and the text of every document, sorted by name.

    A wheel contains them in this package. In a working copy they are in the repository's root.
    """
    packaged = files("gatehouse.directory") / "documents"
    root = packaged if packaged.is_dir() else Path(__file__).parents[3]
    found = [("README.md", root / "README.md"), *_markdown_in(root / "docs", "docs")]
    return sorted((name, file.read_text(encoding="utf-8")) for name, file in found)


def _markdown_in(folder: Traversable, name: str) -> Iterator[tuple[str, Traversable]]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _markdown_in(entry, f"{name}/{entry.name}")
        elif entry.name.endswith(".md"):
            yield f"{name}/{entry.name}", entry


def sections_of(file: str, text: str) -> Iterator[Section]:
    """Split a Markdown document at its headings, ignoring `#` in code blocks."""
    heading, lines, fence = file, list[str](), None
    for line in text.splitlines():
        if mark := _FENCE.match(line):
            fence = mark[1] if fence is None else None if mark[1] == fence else fence
        found = _HEADING.fullmatch(line) if fence is None else None
        if found is None:
            lines.append(line)
            continue
        yield from _section(file, heading, lines)
        heading, lines = found[1], []
    yield from _section(file, heading, lines)


def _section(file: str, heading: str, lines: Sequence[str]) -> Iterator[Section]:
    text = "\n".join(lines).strip()
    if text:
        yield Section(file, heading, text)
