"""May this caller call this tool? Pure: no I/O, no clock. The gate and dispatch both ask here, and only here."""

from dataclasses import dataclass

from gatehouse.resource.catalogue import Catalogue, Tool
from gatehouse.shared.claims import AccessClaims


@dataclass(frozen=True, slots=True)
class Allowed:
    """The caller may call the tool."""

    tool: Tool


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The tool exists, and the caller's scopes do not suffice."""

    tool: Tool
    scope: frozenset[str]
    """The smallest set that suffices for the whole operation, whatever the caller has of it already."""


@dataclass(frozen=True, slots=True)
class UnknownTool:
    """There is no such tool."""


Decision = Allowed | Forbidden | UnknownTool


def decide(catalogue: Catalogue, claims: AccessClaims, tool_name: str) -> Decision:
    """Decide about one call. Every scope of the tool must be among the caller's, or be implied by one of them."""
    tool = catalogue.tools.get(tool_name)
    if tool is None:
        return UnknownTool()
    if tool.scopes <= catalogue.hierarchy.closure(claims.scope):
        return Allowed(tool)
    return Forbidden(tool, required_scope(catalogue, tool_name))


def required_scope(catalogue: Catalogue, tool_name: str | None) -> frozenset[str]:
    """Return the smallest scopes that suffice to call a tool: empty for an unknown one, or none."""
    tool = catalogue.tools.get(tool_name) if tool_name is not None else None
    return catalogue.hierarchy.minimal(tool.scopes) if tool is not None else frozenset()


def callable_tools(catalogue: Catalogue, claims: AccessClaims) -> list[Tool]:
    """Return the tools that the caller may call, in the catalogue's fixed order."""
    return [tool for tool in catalogue.tools.values() if isinstance(decide(catalogue, claims, tool.name), Allowed)]
