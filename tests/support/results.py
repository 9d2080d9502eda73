"""Results of tools, and a text that cannot be sent."""

from pydantic import BaseModel, ConfigDict

HALF = "caf\udce9"
"""Half of a surrogate pair, as in a file name that is not UTF-8."""


class Closed(BaseModel):
    """A result whose schema allows no other member."""

    model_config = ConfigDict(extra="forbid")
    text: str


class Node(BaseModel):
    """A result that contains itself."""

    name: str
    children: list["Node"] = []
