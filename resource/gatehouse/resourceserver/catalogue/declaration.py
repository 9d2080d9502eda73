"""How a tool is declared, and the closed list of all that can be called.

    tools = ToolGroup()

    @tools.tool(scopes=["env:read"], read_only=True)
    async def get_environment(directory: Directory, environment_id: EnvironmentId) -> Environment:
        \"\"\"What an agent reads to decide whether to call it.\"\"\"

Name and argument schema come from the signature, the description from the docstring, the result schema from the
return type. Parameters of the types in INJECTED are given by the server and cannot be sent by a caller. A tool
without scopes is an error: one that needs only a valid token says `scopes=ANY_VALID_TOKEN`. A tool that works for
seconds says `streaming=True`, and takes Progress, and Transactions in place of a Directory. A tool that writes to a
Directory is given an `idempotency_key` that callers may send. What an agent can fix, a tool tells it by raising
ToolFailed.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from mcp_types import Tool as ToolDescription
from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from gatehouse.directory.directory import Directory
from gatehouse.resourceserver.catalogue.signature import (
    InvalidCatalogue,
    ToolFunction,
    arguments_model,
    read_description,
    read_signature,
    source_of,
)
from gatehouse.resourceserver.dispatch import idempotency
from gatehouse.resourceserver.dispatch.idempotency import IdempotencyKey
from gatehouse.resourceserver.dispatch.progress import Progress
from gatehouse.resourceserver.dispatch.transactions import Transactions
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, ScopeHierarchy, parse_scope_token


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

CATALOGUE_URI: Final = "gatehouse://catalogue"
"""The resource by which an agent sees what it could ask for."""

FunctionT = TypeVar("FunctionT", bound=ToolFunction)


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
class Resource:
    """What a caller can read by its URI, as JSON: the same for every caller who may read it."""

    uri: str
    name: str
    description: str
    scopes: frozenset[str]
    """Every one of them is needed. Empty only for ANY_VALID_TOKEN."""
    read: Callable[[str], Mapping[str, Any]]
    """Returns the content, given the identifier of this server (RFC 8707). Called once, when the server starts."""


def declare_resource(
    uri: str,
    read: Callable[[str], Mapping[str, Any]],
    *,
    name: str,
    description: str,
    scopes: ToolScopes,
) -> Resource:
    """Declare what can be read by a URI. Raises InvalidCatalogue when it has no scopes, as for a tool."""
    return Resource(uri, name, description, read_scopes(scopes, uri, "resource"), read)


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
        function: ToolFunction | None = None,
        /,
        *,
        scopes: ToolScopes = (),
        read_only: bool = False,
        destructive: bool = False,
        idempotent: bool = False,
        streaming: bool = False,
    ) -> Callable[[FunctionT], FunctionT]:
        """Declare an async function as a tool.

        Args:
            function: none; it is given where the scopes were forgotten, and the decorator has no parentheses.
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
        if function is not None:
            read_scopes((), function.__name__, source_of(function))

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
    name, source = function.__name__, source_of(function)
    required = read_scopes(scopes, name, source)
    description = read_description(function, name, source)
    injected, fields, result = read_signature(function, name, source)
    _check_injected(name, source, set(injected.values()), hints)
    if not hints.read_only and Directory in injected.values():
        fields[idempotency.ARGUMENT] = (IdempotencyKey | None, None)
    try:
        arguments = arguments_model(name, fields)
        input_schema, output_schema = arguments.model_json_schema(), result.model_json_schema(mode="serialization")
    except PydanticUserError as error:
        raise InvalidCatalogue(
            f"{source}: {name} has a type that JSON cannot carry: {error.message.partition('. ')[0]}."
        ) from None
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
    if isinstance(scopes, str) and scopes:
        raise InvalidCatalogue(f'{source}: {name} has a text for its scopes. Write a list: ["{scopes}"].')
    if not scopes:
        raise InvalidCatalogue(
            f"{source}: {name} has no scopes. List them, or say scopes=ANY_VALID_TOKEN if any caller may call it."
        )
    return frozenset(scopes)


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


class Catalogue:
    """Every tool, resource and scope of a server. What is not in it cannot be called or read."""

    def __init__(
        self,
        name: str,
        scopes: Iterable[Scope],
        groups: Iterable[ToolGroup],
        resources: Iterable[Resource] = (),
        *,
        instructions: str | None = None,
        lifespan: Lifespan = nullcontext,
    ) -> None:
        """Check and freeze the declarations, and add the resource that is the catalogue itself.

        `instructions` tell agents how to use the server; `lifespan` holds what the tools need while they are served.

        Raises:
            InvalidCatalogue: two tools, resources or scopes of one name, a name that cannot be sent, a malformed scope,
                or one that is not declared.
        """
        self.name = name
        self.instructions = instructions
        self.lifespan = lifespan
        self.scopes: Mapping[str, Scope] = MappingProxyType(_unique_scopes(scopes))
        self.hierarchy = ScopeHierarchy({scope.scope: frozenset(scope.implies) for scope in self.scopes.values()})
        self.tools: Mapping[str, Tool] = MappingProxyType(self._unique_tools(groups))
        self.resources: Mapping[str, Resource] = MappingProxyType(self._unique_resources(resources))

    def _unique_tools(self, groups: Iterable[ToolGroup]) -> dict[str, Tool]:
        tools: dict[str, Tool] = {}
        for tool in sorted((tool for group in groups for tool in group.tools), key=lambda tool: tool.name):
            if _TOOL_NAME.fullmatch(tool.name) is None:
                raise InvalidCatalogue(f"{tool.source}: {tool.name!r} is no tool's name. Use A-Z a-z 0-9 _ . - only.")
            if tool.name in tools:
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name} is declared in {tools[tool.name].source} already. Rename one of them."
                )
            self._check_scopes(tool.scopes, f"{tool.source}: {tool.name}")
            tools[tool.name] = tool
        return tools

    def _unique_resources(self, resources: Iterable[Resource]) -> dict[str, Resource]:
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
        return readable

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
    listed = list(scopes)
    for scope in listed:
        if not isinstance(scope, Scope) or isinstance(scope.implies, str):
            raise InvalidCatalogue(f'{scope!r} is no scope. Write: Scope("a:write", "Change it", implies=("a:read",)).')
    for scope in sorted(listed, key=lambda scope: scope.scope):
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
