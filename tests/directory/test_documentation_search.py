"""`search_docs`: what it finds, and that nobody's words are read as a query language."""

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


def test_a_document_is_cut_at_its_headings() -> None:
    sections = list(sections_of("text.md", DOCUMENT))
    assert [section.heading for section in sections] == ["text.md", "Guide", "Scopes", "Sessions"]
    assert "# a comment, no heading" in sections[1].text
    assert sections[3] == Section("text.md", "Sessions", "There are none.")


def test_a_section_about_a_word_comes_before_one_that_mentions_it() -> None:
    mentions = Section("a.md", "Guide", "There are no sessions.")
    about = Section("a.md", "Sessions", "They are not kept here.")
    for sections in ([mentions, about], [about, mentions]):
        assert headings(Index(iter(sections)), "sessions") == ["Sessions", "Guide"]


def test_words_are_found_in_other_forms(index: Index) -> None:
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
def test_no_query_is_read_as_syntax(index: Index, query: str) -> None:
    assert headings(index, "guide") == ["Guide"]
    assert isinstance(index.search(query, 10), list)
    assert headings(index, f"{query} guide")[0] == "Guide"


@pytest.mark.threat("T-040")
def test_a_column_cannot_be_named(index: Index) -> None:
    assert headings(index, "file:guide") == headings(index, "heading:guide") == []


def test_the_documents_of_this_project_are_searched() -> None:
    names = [name for name, _ in documents()]
    assert names == sorted(names)
    assert {"README.md", "docs/threat-model.md", "docs/divergences.md", "docs/decisions/README.md"} <= set(names)


async def test_a_caller_finds_a_section_and_gets_no_more_than_it_asked_for(resourceserver: ResourceServer) -> None:
    token = resourceserver.issuer.token("unknown:scope")
    found = (await resourceserver.result("search_docs", token, query="sealing key", limit=3))["sections"]
    assert len(found) == 3
    assert any("sealing" in section["excerpt"].lower() for section in found)
    assert all(len(section["excerpt"]) < 2000 and "\n" not in section["excerpt"] for section in found)
    assert (await resourceserver.result("search_docs", token, query="zzyzx"))["sections"] == []
    assert "limit" in await resourceserver.failure("search_docs", token, query="key", limit=21)
