"""How a tool is declared, and the closed list of all that can be called.

    tools = ToolGroup()

    @tools.tool(scopes=["env:read"], read_only=True)
    async def get_environment(directory: Directory, environment_id: EnvironmentId) -> Environment:
        \"\"\"What an agent reads to decide whether to call it.\"\"\"

Name and argument schema come from the signature, the description from the docstring, the result schema from the
return type. Parameters of the types in INJECTED are given by the server and cannot be sent by a caller. A tool
without scopes is an error: one that needs only a valid token says `scopes=ANY_VALID_TOKEN`. A tool that works for
seconds says `streaming=True`, and takes Progress, and Transactions in place of a Directory. What an agent can mend, a
tool tells it by raising ToolFailed.
"""

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, TypeVar, get_args, get_type_hints

from mcp_types import CallToolResult
from mcp_types import Tool as ToolDescription
from pydantic import BaseModel, ConfigDict, create_model
from pydantic.errors import PydanticUserError

from gatehouse.resource.directory.directory import Directory
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

ToolScopes = Sequence[str] | _AnyValidToken
"""What a tool needs: every one of some scopes, or ANY_VALID_TOKEN."""

Lifespan = Callable[[], AbstractAsyncContextManager[None]]
"""Entered in every process before the first call, and left after the last."""

_TOOL_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
"""MCP 2026-07-28, "Tool Names". Anything else could not stand in the Mcp-Name header."""

ToolFunction = Callable[..., Awaitable[BaseModel]]
FunctionT = TypeVar("FunctionT", bound=ToolFunction)


class InvalidCatalogue(Exception):
    """A declaration cannot be served. The message names the file, the tool and the mend."""


class ToolFailed(Exception):
    """The call was allowed and cannot be carried out. The message goes to the agent: it says what to do next."""


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
    described: ToolDescription | None = None
    """How the server describes it that the function forwards to. None for a tool that was declared here."""

    def needs(self, injected: type) -> bool:
        """Tell whether the function asks for a value of an injected type."""
        return injected in self.injected.values()

    @property
    def transactional(self) -> bool:
        """Whether a call that fails has changed nothing: it only reads, or all it can write to is a Directory."""
        return not self.streaming and (self.read_only or self.needs(Directory))


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
        scopes: ToolScopes = (),
        read_only: bool = False,
        destructive: bool = False,
        idempotent: bool = False,
        streaming: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Declare an async function as a tool.

        Args:
            scopes: every scope that a caller needs, or ANY_VALID_TOKEN. Left out, they are refused as an empty list is.
            read_only: it changes nothing. The event of a tool that is not is on disk before its answer leaves: in one
                transaction with what it changes in a Directory.
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
    scopes: ToolScopes,
    hints: _Hints,
) -> Tool:
    name, source = function.__name__, _source(function)
    required = read_scopes(scopes, name, source)
    description = _read_description(function, name, source)
    injected, fields, result = _read_signature(function, name, source)
    _check_injected(name, source, set(injected.values()), hints)
    try:
        arguments = _arguments_model(name, fields)
        input_schema, output_schema = arguments.model_json_schema(), result.model_json_schema(mode="serialization")
    except PydanticUserError as error:
        raise InvalidCatalogue(f"{source}: {name} has a type that JSON cannot carry: {error.message}") from None
    if output_schema.get("type") != "object":
        raise InvalidCatalogue(f"{source}: {name} returns no JSON object. Put its result into a member of a model.")
    return Tool(
        name=name,
        description=description,
        scopes=required,
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


def read_scopes(scopes: ToolScopes, name: str, source: str) -> frozenset[str]:
    """Return the scopes of a tool: none for ANY_VALID_TOKEN.

    Raises:
        InvalidCatalogue: there are none, or one text in place of a list.
    """
    if isinstance(scopes, _AnyValidToken):
        return frozenset()
    if isinstance(scopes, str) or not scopes:
        raise InvalidCatalogue(
            f"{source}: {name} has no scopes. List them, or say scopes=ANY_VALID_TOKEN if any caller may call it."
        )
    return frozenset(scopes)


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
    if not (inspect.isclass(result) and issubclass(result, BaseModel)) or issubclass(result, CallToolResult):
        raise InvalidCatalogue(f"{source}: {name} does not return a pydantic model. Annotate its result with one.")
    injected: dict[str, type] = {}
    fields: dict[str, Any] = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in hints or parameter.kind in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}:
            raise InvalidCatalogue(f"{source}: {name} has the argument {parameter.name} without a type. Annotate it.")
        if hints[parameter.name] in INJECTED:
            injected[parameter.name] = hints[parameter.name]
        elif (hidden := _injected_within(hints[parameter.name])) is not None:
            # As an argument it would be the caller's to send: his own identity, for one.
            raise InvalidCatalogue(
                f"{source}: {name} has {hidden.__name__} within the type of {parameter.name}. "
                f"Write {parameter.name}: {hidden.__name__}, and the server gives it."
            )
        else:
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (hints[parameter.name], default)
    return injected, fields, result


def _injected_within(hint: Any) -> type | None:
    """Return the injected type that a hint is derived from, or holds: in a union, a list, an Annotated."""
    if inspect.isclass(hint):
        return next((injected for injected in INJECTED if issubclass(hint, injected)), None)
    return next(filter(None, map(_injected_within, get_args(hint))), None)


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
    """Every tool and every scope of a server. What is not in it cannot be called."""

    def __init__(
        self,
        name: str,
        scopes: Iterable[Scope],
        groups: Iterable[ToolGroup],
        *,
        instructions: str | None = None,
        lifespan: Lifespan = nullcontext,
    ) -> None:
        """Check and freeze the declarations.

        `instructions` tell agents how to use the server; `lifespan` holds what the tools need while they are served.

        Raises:
            InvalidCatalogue: two tools or scopes of one name, a name that cannot be sent, a malformed scope, or a
                scope that is not declared.
        """
        self.name = name
        self.instructions = instructions
        self.lifespan = lifespan
        self.scopes: Mapping[str, Scope] = MappingProxyType(_unique_scopes(scopes))
        self.hierarchy = ScopeHierarchy({scope.scope: frozenset(scope.implies) for scope in self.scopes.values()})
        tools: dict[str, Tool] = {}
        for tool in sorted((tool for group in groups for tool in group.tools), key=lambda tool: tool.name):
            if _TOOL_NAME.fullmatch(tool.name) is None:
                raise InvalidCatalogue(f"{tool.source}: {tool.name!r} is no tool's name. Use A-Z a-z 0-9 _ . - only.")
            if tool.name in tools:
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name} is declared in {tools[tool.name].source} already. Rename one of them."
                )
            if unknown := sorted(tool.scopes - self.scopes.keys()):
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name} needs the scope {unknown[0]}, which is not declared. "
                    f"Declared are: {', '.join(sorted(self.scopes))}."
                )
            tools[tool.name] = tool
        self.tools: Mapping[str, Tool] = MappingProxyType(tools)

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
