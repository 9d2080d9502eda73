"""Reads the catalogue file of a resource server: its scopes and tools.

The file is the output of `resourceserver tools --output json`. Unknown members are ignored.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from gatehouse.authserver.resources.registration import ScopeDeclaration, parse_resource
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, ScopeHierarchy, parse_scope_token
from gatehouse.shared.protocol.visible_text import is_visible
from gatehouse.shared.service.administrator import CommandRefused

MAX_DESCRIPTION = 512
MAX_TOOL_NAME = 128
"""Characters."""

_CREATE_IT = "Create it with: resourceserver tools --output json"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The scopes and tools of one resource."""

    resource: str
    """Its canonical identifier."""
    scopes: tuple[ScopeDeclaration, ...]
    tools: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """The scopes that each tool needs, by its name; an empty set if any valid token suffices."""

    @property
    def hierarchy(self) -> ScopeHierarchy:
        """Which scope implies which, as the resource server declares it."""
        return ScopeHierarchy({scope.scope: frozenset(scope.implies) for scope in self.scopes if scope.implies})


def parse_scope_option(text: str) -> ScopeDeclaration:
    """Read `NAME` or `NAME=DESCRIPTION`. Raises CommandRefused."""
    name, _, description = text.partition("=")
    return read_declaration({"scope": name, "description": description})


def parse_catalogue(document: bytes) -> Catalogue:
    """Read a catalogue file.

    Raises:
        CommandRefused: the file is not JSON or not a catalogue: it names no resource, has a scope or a tool twice, or
            a tool without a list of declared scopes. A tool that needs no scope must have an empty list.
    """
    try:
        catalogue = parse_json(document)
    except InvalidJson as error:
        raise CommandRefused(f"The catalogue file cannot be read: {error}") from None
    if not isinstance(catalogue, dict):
        raise CommandRefused(f"The catalogue file is not a JSON object. {_CREATE_IT}")
    scopes = tuple(read_declaration(scope) for scope in _objects(catalogue, "scopes"))
    declared = [scope.scope for scope in scopes]
    if not declared or len(set(declared)) != len(declared):
        raise CommandRefused("A catalogue must declare at least one scope, and each scope once.")
    resource = catalogue.get("resource")
    if not isinstance(resource, str):
        raise CommandRefused(f"The catalogue file has no member 'resource'. {_CREATE_IT}")
    return Catalogue(parse_resource(resource), scopes, _tools(catalogue, frozenset(declared)))


def _objects(catalogue: Mapping[str, Any], member: str) -> list[Mapping[str, Any]]:
    values = catalogue.get(member)
    if not isinstance(values, list) or not all(isinstance(value, dict) for value in values):
        raise CommandRefused(f"The catalogue file has no member '{member}' with a list of objects. {_CREATE_IT}")
    return values


def read_declaration(members: Mapping[str, Any]) -> ScopeDeclaration:
    """Read `scope`, `description` and `implies`. Raises CommandRefused."""
    scope, description, implies = (
        members.get("scope"),
        members.get("description", ""),
        members.get("implies", []),
    )
    if not isinstance(scope, str) or not isinstance(description, str) or not _are_strings(implies):
        raise CommandRefused(
            "A scope in the catalogue needs a 'scope', and may have a 'description' and a list 'implies'."
        )
    try:
        parse_scope_token(scope)
        implied = tuple(parse_scope_token(name) for name in implies)
    except InvalidScopeSyntax as error:
        raise CommandRefused(f"Invalid scope: {error}") from None
    if len(description) > MAX_DESCRIPTION or not is_visible(description):
        raise CommandRefused(f"The description of {scope} must be at most {MAX_DESCRIPTION} visible characters.")
    return ScopeDeclaration(scope, description, implied)


def _tools(catalogue: Mapping[str, Any], declared: frozenset[str]) -> dict[str, frozenset[str]]:
    tools: dict[str, frozenset[str]] = {}
    # An administrator may write the catalogue of another server by hand, with scopes only.
    for members in _objects(catalogue, "tools") if "tools" in catalogue else []:
        name, scopes = members.get("name"), members.get("scopes")
        if not isinstance(name, str) or not 0 < len(name) <= MAX_TOOL_NAME or not is_visible(name):
            raise CommandRefused(f"A tool in the catalogue needs a 'name' of 1 to {MAX_TOOL_NAME} visible characters.")
        if not _are_strings(scopes):
            raise CommandRefused(
                f"The tool {name} needs a list 'scopes', empty if any valid token may call it. {_CREATE_IT}"
            )
        if unknown := sorted(set(scopes) - declared):
            raise CommandRefused(f"The tool {name} needs a scope that the catalogue does not declare: {unknown[0]!r}.")
        if name in tools:
            raise CommandRefused(f"The catalogue has the tool {name} twice.")
        tools[name] = frozenset(scopes)
    return tools


def _are_strings(value: object) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
