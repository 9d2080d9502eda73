"""Reads the catalogue file of a resource server: its scopes and tools.

The file is the output of `resourceserver tools --output json`, or the policy file of a gateway (TOML). Members that are
not read here are ignored: the resource server checks its own policy file as a whole.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

from gatehouse.authserver.resources.registration import ScopeDeclaration, parse_resource
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, ScopeHierarchy, parse_scope_token
from gatehouse.shared.protocol.visible_text import is_visible
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.toml_document import InvalidToml, parse_toml

MAX_DESCRIPTION = 512
MAX_TOOL_NAME = 128
"""Characters."""

_CREATE_IT = "Create it with: resourceserver tools --output json"
_CHECK_IT = "The resource server says what is wrong: resourceserver policy check"


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


def parse_catalogue(document: bytes, resource: str | None = None) -> Catalogue:
    """Read a catalogue file. `resource` is the resource that the command names.

    Raises:
        CommandRefused: the file is neither JSON nor TOML, or not a catalogue: it has a scope or a tool twice, or a tool
            without a list of declared scopes. A tool that needs no scope must say so. Or it is not known which resource
            it is for: neither the file nor the command names one, or they name two.
    """
    # JSON of a catalogue is an object, and no TOML begins like one.
    is_json = document.lstrip()[:1] == b"{"
    catalogue = _read_json(document) if is_json else _read_policy(document)
    scopes = tuple(read_declaration(scope) for scope in _objects(catalogue, "scopes"))
    declared = [scope.scope for scope in scopes]
    if not declared or len(set(declared)) != len(declared):
        raise CommandRefused("A catalogue must declare at least one scope, and each scope once.")
    identifier = _resource(catalogue.get("resource"), resource)
    return Catalogue(identifier, scopes, _tools(catalogue, frozenset(declared)))


def _resource(in_file: object, named: str | None) -> str:
    """Return the canonical identifier of the resource that a catalogue is for. Raises CommandRefused."""
    if in_file is None and named is not None:
        return parse_resource(named)
    if not isinstance(in_file, str):
        raise CommandRefused("The catalogue file does not name its 'resource'. Add it, or name it in the command.")
    resource = parse_resource(in_file)
    if named is not None and parse_resource(named) != resource:
        raise CommandRefused(f"The catalogue belongs to {resource}, not to {named}. Use the URL in the catalogue.")
    return resource


def _read_json(document: bytes) -> Mapping[str, Any]:
    try:
        catalogue: Mapping[str, Any] = parse_json(document)
    except InvalidJson as error:
        raise CommandRefused(f"The catalogue file cannot be read: {error}") from None
    return catalogue


def _read_policy(document: bytes) -> Mapping[str, Any]:
    """Return the resource, the scopes and the tools of a policy file, in the form that they have in JSON.

    Denied tools are omitted: no client can call them.
    """
    try:
        policy = parse_toml(document.decode()).content
    except UnicodeDecodeError:
        raise CommandRefused("The catalogue file is not text in UTF-8.") from None
    except InvalidToml as error:
        raise CommandRefused(f"The catalogue file is not a JSON object, and cannot be read as TOML: {error}.") from None
    return {
        "resource": policy.get("resource"),
        "scopes": [_scope(name, members) for name, members in _tables(policy, "scopes")],
        "tools": [
            {"name": name, "scopes": _scopes_of(name, tool)}
            for name, tool in _tables(policy, "tools")
            if not _is_denied(name, tool)
        ],
    }


def _tables(policy: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    tables = policy.get(key, {})
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise CommandRefused(f"The policy file has no tables [{key}.NAME]. {_CHECK_IT}")
    return list(tables.items())


def _scope(name: str, members: Mapping[str, Any]) -> Mapping[str, Any]:
    if unknown := sorted(members.keys() - {"description", "implies"}):
        raise CommandRefused(f"The scope {quoted(name)} has the unknown key {quoted(unknown[0])}. {_CHECK_IT}")
    return {**members, "scope": name}


def _is_denied(name: str, tool: Mapping[str, Any]) -> bool:
    """Tell whether a tool of a policy file is denied. Raises CommandRefused if it does not say who may call it."""
    kinds = [key for key in ("scopes", "any_valid_token", "deny") if key in tool]
    if len(kinds) != 1 or (kinds != ["scopes"] and tool[kinds[0]] is not True):
        raise CommandRefused(
            f"The tool {quoted(name)} needs one of scopes = [...], any_valid_token = true and deny = true. {_CHECK_IT}"
        )
    return "deny" in tool


def _scopes_of(name: str, tool: Mapping[str, Any]) -> object:
    if "scopes" in tool and not tool["scopes"]:
        raise CommandRefused(
            f"The tool {quoted(name)} has no scopes. Write any_valid_token = true if any client may call it."
        )
    return tool.get("scopes", [])


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
