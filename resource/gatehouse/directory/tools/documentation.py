"""Documentation."""

from typing import Annotated

from pydantic import BaseModel, Field

from gatehouse.directory import documentation_index
from gatehouse.directory.text import SearchText
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, ToolGroup

tools = ToolGroup()

Limit = Annotated[int, Field(ge=1, le=20, description="Sections at most, 20 at most.")]


class DocumentSection(BaseModel):
    """A section of a document that has some of the words."""

    file: str
    heading: str
    excerpt: str = Field(description="What stands around the words, in Markdown; '...' where it is cut.")


class DocumentSearch(BaseModel):
    """What was found, the best match first."""

    sections: list[DocumentSection]


@tools.tool(scopes=ANY_VALID_TOKEN, read_only=True)
async def search_docs(query: SearchText, limit: Limit = 5) -> DocumentSearch:
    """Search the documentation of Gatehouse: how to register clients, grant scopes, read the audit log, and more.

    Give the words that matter, in English; there are no operators. Use other words when nothing is found.
    """
    found = await documentation_index.search(query, limit)
    return DocumentSearch(
        sections=[
            DocumentSection(file=section.file, heading=section.heading, excerpt=section.text) for section in found
        ]
    )
