"""Decides whether a caller may call a tool or read a resource.

The functions are pure: no I/O, no clock. The gate and dispatch both decide with them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

from gatehouse.resourceserver.catalogue import Catalogue, Resource, Tool
from gatehouse.shared.protocol.claims import AccessClaims

TargetT = TypeVar("TargetT", Tool, Resource)


@dataclass(frozen=True, slots=True)
class Allowed(Generic[TargetT]):
    """The caller may call the tool, or read the resource."""

    target: TargetT


@dataclass(frozen=True, slots=True)
class Forbidden:
    """The tool or resource exists, and the caller lacks a scope."""

    scope: frozenset[str]
    """The smallest set that suffices for the operation, including scopes that the caller already has."""


@dataclass(frozen=True, slots=True)
class Withheld:
    """The tool is declared, and refused to every caller until an operator acts."""

    reason: str
    """For the operator."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """The catalogue has no such tool or resource."""


Refusal = Forbidden | Withheld | Unknown
Decision = Allowed[TargetT] | Refusal


def decide(catalogue: Catalogue, claims: AccessClaims, tool_name: str) -> Decision[Tool]:
    """Decide whether a caller may call a tool. Its token needs every scope of the tool, or scopes that imply them."""
    if (reason := catalogue.withheld.get(tool_name)) is not None:
        return Withheld(reason)
    return _decide(catalogue, claims, catalogue.tools.get(tool_name))


def decide_read(catalogue: Catalogue, claims: AccessClaims, uri: str) -> Decision[Resource]:
    """Decide whether a caller may read the resource with exactly this URI."""
    return _decide(catalogue, claims, catalogue.resources.get(uri))


def _decide(catalogue: Catalogue, claims: AccessClaims, target: TargetT | None) -> Decision[TargetT]:
    if target is None:
        return Unknown()
    if _suffices(catalogue.closure(claims.scope), target):
        return Allowed(target)
    return Forbidden(catalogue.hierarchy.minimal(target.scopes))


def _suffices(held: frozenset[str], target: Tool | Resource) -> bool:
    """Tell whether a closed set of scopes contains every scope that a target needs."""
    return target.scopes <= held


def required_scope(catalogue: Catalogue, tool_name: str | None, uri: str | None = None) -> frozenset[str]:
    """Return the smallest scopes that suffice for a tool or a resource. Empty for an unknown one, or for neither."""
    target = catalogue.tools.get(tool_name or "") or catalogue.resources.get(uri or "")
    return catalogue.hierarchy.minimal(target.scopes) if target is not None else frozenset()


def callable_tools(catalogue: Catalogue, claims: AccessClaims) -> list[Tool]:
    """Return the tools that the caller may call, in the catalogue's fixed order."""
    return _allowed(catalogue, claims, catalogue.tools.values())


def readable_resources(catalogue: Catalogue, claims: AccessClaims) -> list[Resource]:
    """Return the resources that the caller may read, in the catalogue's fixed order."""
    return _allowed(catalogue, claims, catalogue.resources.values())


def _allowed(catalogue: Catalogue, claims: AccessClaims, targets: Iterable[TargetT]) -> list[TargetT]:
    held = catalogue.closure(claims.scope)
    return [target for target in targets if _suffices(held, target)]
