"""`search_docs`: its results, and that queries are not parsed as FTS5 syntax."""

import pytest
from support.resourceserver import ResourceServer

from gatehouse.directory.documentation import Index, Section, documents, sections_of

pytestmark = pytest.mark.anyio

DOCUMENT = """\
Before any heading.

# Guide

Words of the guide.

```sh
# a comment, no heading
```

## Scopes ##

The scope `env:write` implies reading.

## Empty

### Sessions
There are none.
"""


@pytest.fixture
def index() -> Index:
    return Index(sections_of("text.md", DOCUMENT))


def headings(index: Index, query: str) -> list[str]:
    return [section.heading for section in index.search(query, 10)]


def test_a_document_is_split_at_its_headings() -> None:
    sections = list(sections_of("text.md", DOCUMENT))
    assert [section.heading for section in sections] == ["text.md", "Guide", "Scopes", "Sessions"]
    assert "# a comment, no heading" in sections[1].text
    assert sections[3] == Section("text.md", "Sessions", "There are none.")


def test_a_match_in_a_heading_ranks_higher() -> None:
    mentions = Section("a.md", "Guide", "There are no sessions.")
    about = Section("a.md", "Sessions", "They are not kept here.")
    for sections in ([mentions, about], [about, mentions]):
        assert headings(Index(iter(sections)), "sessions") == ["Sessions", "Guide"]


def test_words_match_in_any_inflection(index: Index) -> None:
    assert headings(index, "scopes") == ["Scopes"]
    assert headings(index, "IMPLY") == ["Scopes"]
    assert headings(index, "env:write") == ["Scopes"]
    assert headings(index, "zzyzx") == []
    assert len(index.search("guide scope sessions", 2)) == 2


@pytest.mark.threat("T-040")
@pytest.mark.parametrize(
    "query",
    [
        *('"', '""', "'", "*", "^", "-", "(", ")", "%", " ", "\0", "a\0b", "\u20ac", "OR", "NOT NOT", "guide AND"),
        *("NEAR(", "NEAR(a b, 2)", "heading:", "file:guide", "{heading}:guide"),
        *("x' OR '1'='1", '"; DROP TABLE section; --'),
    ],
)
def test_a_query_is_not_parsed_as_fts5_syntax(index: Index, query: str) -> None:
    assert headings(index, "guide") == ["Guide"]
    assert isinstance(index.search(query, 10), list)
    assert headings(index, f"{query} guide")[0] == "Guide"


@pytest.mark.threat("T-040")
def test_a_query_cannot_name_a_column(index: Index) -> None:
    assert headings(index, "file:guide") == headings(index, "heading:guide") == []


def test_the_index_contains_this_projects_documents() -> None:
    names = [name for name, _ in documents()]
    assert names == sorted(names)
    assert {"README.md", "docs/threat-model.md", "docs/divergences.md", "docs/decisions/README.md"} <= set(names)


async def test_search_docs_returns_at_most_limit_sections(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token("unknown:scope")
    found = (await resourceserver.result("search_docs", token, query="sealing key", limit=3))["sections"]
    assert len(found) == 3
    assert any("sealing" in section["excerpt"].lower() for section in found)
    assert all(len(section["excerpt"]) < 2000 and "\n" not in section["excerpt"] for section in found)
    assert (await resourceserver.result("search_docs", token, query="zzyzx"))["sections"] == []
    assert "limit" in await resourceserver.failure("search_docs", token, query="key", limit=21)
