"""How a tool is declared, and the closed list of all that can be called.

    tools = ToolGroup()

    @tools.tool(scopes=["env:read"], read_only=True)
    async def get_environment(directory: Directory, environment_id: EnvironmentId) -> Environment:
        \"\"\"What an agent reads to decide whether to call it.\"\"\"

Name and argument schema come from the signature, the description from the docstring, the result schema from the
return type. Parameters of the types in INJECTED are given by the server and cannot be sent by a caller. A tool
without scopes is an error: one that needs only a valid token says `scopes=ANY_VALID_TOKEN`. A tool that works for
seconds says `streaming=True`, and takes Progress, and Transactions in place of a Directory. Every other tool that
writes is given an `idempotency_key` that callers may send.
"""

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_type_hints

from pydantic import BaseModel, ConfigDict, create_model
from pydantic.errors import PydanticUserError

from gatehouse.resource import idempotency
from gatehouse.resource.directory.directory import Directory
from gatehouse.resource.idempotency import IdempotencyKey
from gatehouse.resource.progress import Progress
from gatehouse.resource.transactions import Transactions
from gatehouse.shared.claims import AccessClaims
from gatehouse.shared.scopes import InvalidScopeSyntax, ScopeHierarchy, parse_scope_token

INJECTED: Final = (AccessClaims, Directory, Progress, Transactions)
"""Parameter types that the server fills: the verified caller, and the directory of the caller's workspace; for a
streaming tool its progress, and transactions on the directory."""


class _AnyValidToken(Enum):
    ANY_VALID_TOKEN = "any valid token"  # noqa: S105 - a name, not a token


ANY_VALID_TOKEN: Final = _AnyValidToken.ANY_VALID_TOKEN
"""The scopes of a tool that every caller with a valid token may call."""

CATALOGUE_URI: Final = "gatehouse://catalogue"
"""The resource by which an agent sees what it could ask for."""

ToolFunction = Callable[..., Awaitable[BaseModel]]
FunctionT = TypeVar("FunctionT", bound=ToolFunction)


class InvalidCatalogue(Exception):
    """A declaration cannot be served. The message names the file, the tool and the mend."""


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope, in words for the admin who grants it, and the scopes that it implies."""

    scope: str
    description: str
    implies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as it is called."""

    name: str
    description: str
    scopes: frozenset[str]
    """Every one of them is needed. Empty only for ANY_VALID_TOKEN."""
    read_only: bool
    destructive: bool
    idempotent: bool
    streaming: bool
    """It reports progress while it works, in transactions of its own."""
    function: ToolFunction
    injected: Mapping[str, type]
    """Type by parameter name."""
    arguments: type[BaseModel]
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    source: str
    """File and line of the declaration, for messages."""

    def needs(self, injected: type) -> bool:
        """Tell whether the function asks for a value of an injected type."""
        return injected in self.injected.values()


@dataclass(frozen=True, slots=True)
class Resource:
    """What a caller can read by its URI, as JSON: the same for every caller who may read it."""

    uri: str
    name: str
    description: str
    scopes: frozenset[str]
    """Every one of them is needed. Empty only for ANY_VALID_TOKEN."""
    read: Callable[[str], Mapping[str, Any]]
    """Returns the content, given the identifier of this server (RFC 8707)."""


def declare_resource(
    uri: str,
    read: Callable[[str], Mapping[str, Any]],
    *,
    name: str,
    description: str,
    scopes: Sequence[str] | _AnyValidToken,
) -> Resource:
    """Declare what can be read by a URI. Raises InvalidCatalogue when it has no scopes, as for a tool."""
    return Resource(uri, name, description, _needed_scopes(scopes, uri), read)


def _needed_scopes(scopes: Sequence[str] | _AnyValidToken, what: str) -> frozenset[str]:
    if isinstance(scopes, _AnyValidToken):
        return frozenset()
    if isinstance(scopes, str) or not scopes:
        raise InvalidCatalogue(
            f"{what} has no scopes. List them, or say scopes=ANY_VALID_TOKEN if any caller may call it."
        )
    return frozenset(scopes)


@dataclass(frozen=True, slots=True)
class _Hints:
    read_only: bool
    destructive: bool
    idempotent: bool
    streaming: bool


@dataclass(slots=True)
class ToolGroup:
    """The tools that one module declares."""

    tools: list[Tool] = field(default_factory=list)

    def tool(
        self,
        *,
        scopes: Sequence[str] | _AnyValidToken,
        read_only: bool,
        destructive: bool = False,
        idempotent: bool = False,
        streaming: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Declare an async function as a tool.

        Args:
            scopes: every scope that a caller needs, or ANY_VALID_TOKEN.
            read_only: it changes nothing. A tool that is not runs in a transaction together with its audit event.
            destructive: it removes or overwrites something; a hint to clients.
            idempotent: to repeat the call changes nothing more; a hint to clients.
            streaming: it reports progress while it works, and writes in transactions of its own, each with its event.

        Raises:
            InvalidCatalogue: no scopes, no description, a parameter or result without a usable type, or injected types
                that do not fit the rest.
        """

        def declare(function: FunctionT) -> FunctionT:
            hints = _Hints(read_only, destructive, idempotent or read_only, streaming)
            self.tools.append(_read_declaration(function, scopes, hints))
            return function

        return declare


def _read_declaration(
    function: ToolFunction,
    scopes: Sequence[str] | _AnyValidToken,
    hints: _Hints,
) -> Tool:
    name, source = function.__name__, _source(function)
    needed = _needed_scopes(scopes, f"{source}: {name}")
    description = _read_description(function, name, source)
    injected, fields, result = _read_signature(function, name, source)
    _check_injected(name, source, set(injected.values()), hints)
    if not (hints.read_only or hints.streaming):
        fields[idempotency.ARGUMENT] = (IdempotencyKey | None, None)
    try:
        arguments = _arguments_model(name, fields)
        input_schema, output_schema = arguments.model_json_schema(), result.model_json_schema(mode="serialization")
    except PydanticUserError as error:
        raise InvalidCatalogue(f"{source}: {name} has a type that JSON cannot carry: {error.message}") from None
    return Tool(
        name=name,
        description=description,
        scopes=needed,
        read_only=hints.read_only,
        destructive=hints.destructive,
        idempotent=hints.idempotent,
        streaming=hints.streaming,
        function=function,
        injected=MappingProxyType(injected),
        arguments=arguments,
        input_schema=MappingProxyType(input_schema),
        output_schema=MappingProxyType(output_schema),
        source=source,
    )


def _read_description(function: ToolFunction, name: str, source: str) -> str:
    if not inspect.iscoroutinefunction(function):
        raise InvalidCatalogue(f"{source}: {name} is not async. Write it with async def.")
    description = inspect.getdoc(function)
    if not description:
        raise InvalidCatalogue(f"{source}: {name} has no docstring. An agent reads it to decide whether to call.")
    return description


def _source(function: ToolFunction) -> str:
    code = inspect.unwrap(function).__code__
    return f"{Path(code.co_filename).name}:{code.co_firstlineno}"


def _read_signature(
    function: ToolFunction, name: str, source: str
) -> tuple[dict[str, type], dict[str, Any], type[BaseModel]]:
    try:
        hints = get_type_hints(function, include_extras=True)
    except NameError as error:
        raise InvalidCatalogue(f"{source}: {name} has a type that cannot be found: {error}.") from None
    result = hints.pop("return", None)
    if not (inspect.isclass(result) and issubclass(result, BaseModel)):
        raise InvalidCatalogue(f"{source}: {name} does not return a pydantic model. Annotate its result with one.")
    injected: dict[str, type] = {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise InvalidCatalogue(f"{source}: {name} has the argument {parameter.name} without a type. Annotate it.")
        if parameter.name == idempotency.ARGUMENT:
            raise InvalidCatalogue(
                f"{source}: {name} has the argument {parameter.name}, which every tool that writes is given. Remove it."
            )
        if hints[parameter.name] in INJECTED:
            injected[parameter.name] = hints[parameter.name]
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return injected, fields, result


def _check_injected(name: str, source: str, injected: set[type], hints: _Hints) -> None:
    if hints.streaming != (Progress in injected):
        raise InvalidCatalogue(
            f"{source}: {name} has one of streaming=True and an argument of the type Progress. Say both, or neither."
        )
    if hints.streaming and Directory in injected:
        raise InvalidCatalogue(
            f"{source}: {name} is streaming, and would hold one transaction for as long as it works. "
            "Take Transactions in place of the Directory."
        )
    if Transactions in injected and (hints.read_only or not hints.streaming):
        raise InvalidCatalogue(f"{source}: {name} takes Transactions: only a streaming tool that writes can.")


def _arguments_model(name: str, fields: dict[str, Any]) -> type[BaseModel]:
    # Unknown arguments are refused, and no type is turned into another: "5" is not 5.
    config = ConfigDict(extra="forbid", strict=True, hide_input_in_errors=True)
    return create_model(f"{name}_arguments", __config__=config, **fields)


class Catalogue:
    """Every tool, resource and scope of a server. What is not in it cannot be called or read."""

    def __init__(
        self, name: str, scopes: Iterable[Scope], groups: Iterable[ToolGroup], resources: Iterable[Resource] = ()
    ) -> None:
        """Check and freeze the declarations, and add the resource that is the catalogue itself.

        Raises:
            InvalidCatalogue: two tools, resources or scopes of one name, a malformed scope, or one that is not
                declared.
        """
        self.name = name
        self.scopes: Mapping[str, Scope] = MappingProxyType(_unique_scopes(scopes))
        self.hierarchy = ScopeHierarchy({scope.scope: frozenset(scope.implies) for scope in self.scopes.values()})
        tools: dict[str, Tool] = {}
        for tool in sorted((tool for group in groups for tool in group.tools), key=lambda tool: tool.name):
            if tool.name in tools:
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name} is declared in {tools[tool.name].source} already. Rename one of them."
                )
            self._check_scopes(tool.scopes, f"{tool.source}: {tool.name}")
            tools[tool.name] = tool
        self.tools: Mapping[str, Tool] = MappingProxyType(tools)
        itself = declare_resource(
            CATALOGUE_URI,
            self.document,
            name="catalogue",
            description="Every tool of this server with the scopes that it needs, also those that you may not call.",
            scopes=ANY_VALID_TOKEN,
        )
        readable: dict[str, Resource] = {}
        for resource in sorted((itself, *resources), key=lambda resource: resource.uri):
            self._check_scopes(resource.scopes, resource.uri)
            if readable.setdefault(resource.uri, resource) is not resource:
                raise InvalidCatalogue(f"The resource {resource.uri} is declared twice.")
        self.resources: Mapping[str, Resource] = MappingProxyType(readable)

    def _check_scopes(self, needed: frozenset[str], what: str) -> None:
        if unknown := sorted(needed - self.scopes.keys()):
            raise InvalidCatalogue(
                f"{what} needs the scope {unknown[0]}, which is not declared. "
                f"Declared are: {', '.join(sorted(self.scopes))}."
            )

    def document(self, resource: str) -> dict[str, Any]:
        """Return the catalogue file: what `authserver resource add --catalogue` reads, and every tool for people."""
        return {
            "resource": resource,
            "scopes": [
                {"scope": scope.scope, "description": scope.description, "implies": sorted(scope.implies)}
                for scope in self.scopes.values()
            ],
            "tools": [
                {
                    "name": tool.name,
                    "description": tool.description,
                    "scopes": sorted(tool.scopes),
                    "read_only": tool.read_only,
                    "streaming": tool.streaming,
                    "input_schema": dict(tool.input_schema),
                    "output_schema": dict(tool.output_schema),
                }
                for tool in self.tools.values()
            ],
        }


def _unique_scopes(scopes: Iterable[Scope]) -> dict[str, Scope]:
    declared: dict[str, Scope] = {}
    for scope in sorted(scopes, key=lambda scope: scope.scope):
        try:
            parse_scope_token(scope.scope)
        except InvalidScopeSyntax as error:
            raise InvalidCatalogue(f"The scope {scope.scope!r} cannot be used: {error}") from None
        if declared.setdefault(scope.scope, scope) is not scope:
            raise InvalidCatalogue(f"The scope {scope.scope} is declared twice.")
    for scope in declared.values():
        if unknown := sorted(set(scope.implies) - declared.keys()):
            raise InvalidCatalogue(f"The scope {scope.scope} implies {unknown[0]}, which is not declared.")
    return declared
