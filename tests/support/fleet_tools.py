"""The tools of the fleet's resource servers."""

from pydantic import BaseModel

from gatehouse.directory import identity
from gatehouse.directory.catalogue import CATALOGUE as DIRECTORY
from gatehouse.resourceserver.catalogue import ANY_VALID_TOKEN, Catalogue, ToolGroup

CALLS_PER_MINUTE = 20
"""Calls of `limited` that are allowed."""

tools = ToolGroup()


class Answer(BaseModel):
    """The result of the tool."""

    text: str


@tools.tool(scopes=ANY_VALID_TOKEN, read_only=True, limit=f"{CALLS_PER_MINUTE}/minute")
async def limited() -> Answer:
    """Return a constant text."""
    return Answer(text="called")


CATALOGUE = Catalogue("Fleet", DIRECTORY.scopes.values(), [identity.tools, tools])
