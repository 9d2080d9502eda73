"""Tools that tests declare in a catalogue of one scope."""

from typing import Any

from pydantic import BaseModel

from gatehouse.directory.directory import Directory, open_directory
from gatehouse.resourceserver.catalogue import Catalogue, Scope, Tool, ToolGroup

READ = Scope("env:read", "See environments")


class Answer(BaseModel):
    """The result of a tool."""

    text: str


def declare(function: Any, scopes: Any = (READ.scope,), **options: Any) -> Tool:
    """Declare a tool in a catalogue, and return it."""
    group = ToolGroup()
    group.tool(**{"scopes": scopes, "read_only": True, **options})(function)
    catalogue = Catalogue("test", [READ], [group], providers={Directory: open_directory})
    return catalogue.tools[function.__name__]
