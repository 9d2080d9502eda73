"""The catalogue: the closed list of the tools, resources and scopes of a server, and how clients see each tool."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import lru_cache
from pkgutil import resolve_name
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from mcp_types import Tool as ToolDescription
from mcp_types import ToolAnnotations

from gatehouse.resourceserver.catalogue.declaration import (
    ANY_VALID_TOKEN,
    Resource,
    Scope,
    ToolGroup,
    declare_resource,
)
from gatehouse.resourceserver.catalogue.providers import BUILT_IN, Provider, Providers
from gatehouse.resourceserver.catalogue.signature import InvalidCatalogue
from gatehouse.resourceserver.catalogue.tool import Tool
from gatehouse.shared.protocol.encoding import InvalidJson, format_json, parse_json
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, ScopeHierarchy, parse_scope_token

if TYPE_CHECKING:
    import click

    from gatehouse.shared.service.migrations import Schema

Lifespan = Callable[[], AbstractAsyncContextManager[None]]
"""Entered in every process before the first call, and left after the last."""

TOOL_NAME: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}", re.ASCII)
"""MCP 2026-07-28, "Tool Names". The Mcp-Name header cannot carry other names."""

_SCOPE_SETS: Final = 1024
"""Sets of scopes, as tokens have them, whose implied scopes are remembered."""

SCOPES_META: Final = "io.gatehouse/scopes"
"""Key in a tool's `_meta`: the scopes that it needs."""

CATALOGUE_URI: Final = "gatehouse://catalogue"
"""The resource that shows an agent which scopes exist and which tools need them."""


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
        providers: Mapping[type, Provider[Any]] | None = None,
        forwarded: Iterable[Tool] = (),
        withheld: Mapping[str, str] = MappingProxyType({}),
        migrations: str | None = None,
        cli: str | None = None,
    ) -> None:
        """Check the declarations, and add the catalogue itself as a resource.

        Args:
            name: the server's name, for clients.
            scopes: all scopes that tools and resources need.
            groups: the declared tools.
            resources: the declared resources.
            instructions: a text that tells agents how to use the server.
            lifespan: an async context manager for what the tools need, such as connections.
            providers: by type, the providers of injected parameters.
            forwarded: tools of an SDK server, or of an upstream.
            withheld: tools that are refused although they were declared, each with the reason for the operator.
            migrations: `package.module:NAME` of the Schema of the catalogue's own tables, imported when it is needed.
            cli: `package.module:NAME` of a click command that `resourceserver` offers, imported when it is needed.

        Raises:
            InvalidCatalogue: a tool cannot be read, two tools, resources or scopes have the same name, a tool's name is
                invalid, a scope is malformed or not declared, or a description cannot be sent as JSON.
        """
        self.name = name
        self.instructions = instructions
        self.lifespan = lifespan
        self.scopes: Mapping[str, Scope] = MappingProxyType(_unique_scopes(scopes))
        self.hierarchy = ScopeHierarchy({scope.scope: frozenset(scope.implies) for scope in self.scopes.values()})
        self.closure: Callable[[frozenset[str]], frozenset[str]] = lru_cache(_SCOPE_SETS)(self.hierarchy.closure)
        registered = _checked_providers(providers or {})
        declared = (declaration.read(registered) for group in groups for declaration in group.declarations)
        self.tools: Mapping[str, Tool] = MappingProxyType(self._unique_tools([*declared, *forwarded]))
        self.descriptions: Mapping[str, ToolDescription] = MappingProxyType(
            {name: _describe(tool) for name, tool in self.tools.items()}
        )
        """What `tools/list` shows of each tool, by name."""
        self.resources: Mapping[str, Resource] = MappingProxyType(self._unique_resources(resources))
        self.withheld = withheld
        self._migrations = migrations
        self._cli = cli
        self._contents: dict[str, Mapping[str, str]] = {}
        self._check_texts()

    def load_schema(self) -> "Schema | None":
        """Import and return the schema of the catalogue's own tables; None if it has no tables."""
        schema: Schema | None = resolve_name(self._migrations) if self._migrations is not None else None
        return schema

    def load_command(self) -> "click.Command | None":
        """Import and return the command that the catalogue adds to `resourceserver`; None if it adds none."""
        command: click.Command | None = resolve_name(self._cli) if self._cli is not None else None
        return command

    def adopt(self, other: "Catalogue") -> None:
        """Declare what another catalogue declares, and nothing else. A call in progress keeps the tool that it has."""
        self.__dict__.update(vars(other))

    def contents(self, identifier: str) -> Mapping[str, str]:
        """Read every resource once, and return its JSON by its URI.

        Args:
            identifier: the resource identifier of the server (RFC 8707).

        Raises:
            InvalidCatalogue: a resource cannot be read, or what it contains is not JSON.
        """
        if identifier not in self._contents:
            read = {uri: _read_resource(resource, identifier) for uri, resource in self.resources.items()}
            self._contents[identifier] = MappingProxyType(read)
        return self._contents[identifier]

    def _check_texts(self) -> None:
        """Refuse what would break a list for every client, such as half of a surrogate pair in one description."""
        for tool in self.tools.values():
            described = self.descriptions[tool.name].model_dump(mode="json", by_alias=True, exclude_none=True)
            schemas = [dict(tool.input_schema), dict(tool.output_schema)]
            # In two arrays, because `document` has the schemas at this depth.
            _check_json([[described, *schemas]], f"{tool.source}: the description of {tool.name}")
        for scope in self.scopes.values():
            _check_json([scope.scope, scope.description], f"The scope {scope.scope}")
        for resource in self.resources.values():
            _check_json([resource.uri, resource.name, resource.description], f"The resource {resource.uri!r}")
        _check_json([self.name, self.instructions], "The name or the instructions of the catalogue")

    def _unique_tools(self, found: Iterable[Tool]) -> dict[str, Tool]:
        tools: dict[str, Tool] = {}
        for tool in sorted(found, key=lambda tool: tool.name):
            if TOOL_NAME.fullmatch(tool.name) is None:
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name!r} is not a valid tool name. Use only A-Z a-z 0-9 _ . -"
                )
            if tool.name in tools:
                raise InvalidCatalogue(
                    f"{tool.source}: {tool.name} is already declared in {tools[tool.name].source}. Rename one of them."
                )
            self._check_scopes(tool.scopes, f"{tool.source}: {tool.name}")
            tools[tool.name] = tool
        return tools

    def _unique_resources(self, resources: Iterable[Resource]) -> dict[str, Resource]:
        itself = declare_resource(
            CATALOGUE_URI,
            self.document,
            name="catalogue",
            description="All tools of this server with the scopes that they need, also tools that you may not call.",
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
                f"Declared scopes: {', '.join(sorted(self.scopes))}."
            )

    def document(self, resource: str) -> dict[str, Any]:
        """Return the catalogue file of `authserver resource add --catalogue`: JSON with all scopes and tools.

        `resource` is the resource identifier of the server (RFC 8707).
        """
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


def _check_json(value: object, what: str) -> str:
    try:
        text = format_json(value)
        # The keys 1 and "1" of a dict are one name in JSON.
        parse_json(text.encode())
    except InvalidJson as error:
        raise InvalidCatalogue(f"{what} cannot be sent as JSON. {error}") from None
    return text


def _read_resource(resource: Resource, identifier: str) -> str:
    try:
        content = resource.read(identifier)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        reason = printable(f"{type(error).__name__}: {error}".partition("\n")[0])
        raise InvalidCatalogue(f"The resource {resource.uri} cannot be read: {reason}") from error
    return _check_json(content, f"The content of the resource {resource.uri}")


def _checked_providers(providers: Mapping[type, Provider[Any]]) -> Providers:
    for type_, provider in providers.items():
        if type_ in BUILT_IN:
            raise InvalidCatalogue(f"{type_.__name__} cannot have a provider: the server injects it.")
        if not isinstance(provider, Provider):
            raise InvalidCatalogue(
                f"The provider of {type_.__name__} is not declared. Write @provider() before its function."
            )
        if provider.transactional == inspect.iscoroutinefunction(provider.open):
            raise InvalidCatalogue(_wrong_kind_of_function(type_, provider))
    return dict(providers)


def _wrong_kind_of_function(type_: type, provider: Provider[Any]) -> str:
    if provider.transactional:
        return (
            f"The provider of {type_.__name__} is transactional, and async. It runs in a thread, with a Session of "
            "SQLAlchemy: write it with def, without await."
        )
    return (
        f"The provider of {type_.__name__} runs on the event loop, and is not async. Write it with async def, or "
        "declare it as transactional if it works in the call's transaction: @provider(transactional=True)."
    )


def _unique_scopes(scopes: Iterable[Scope]) -> dict[str, Scope]:
    declared: dict[str, Scope] = {}
    listed = list(scopes)
    for scope in listed:
        if not isinstance(scope, Scope) or isinstance(scope.implies, str):
            raise InvalidCatalogue(
                f'{scope!r} is not a Scope. Write: Scope("a:write", "Change it", implies=("a:read",)).'
            )
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


def _describe(tool: Tool) -> ToolDescription:
    """Return the description of a tool in `tools/list`."""
    meta = {SCOPES_META: sorted(tool.scopes)}
    if tool.described is not None:
        return tool.described.model_copy(update={"meta": {**(tool.described.meta or {}), **meta}})
    return ToolDescription(
        name=tool.name,
        description=tool.description,
        input_schema=dict(tool.input_schema),
        output_schema=dict(tool.output_schema),
        annotations=ToolAnnotations(
            read_only_hint=tool.read_only,
            destructive_hint=tool.destructive,
            idempotent_hint=tool.idempotent,
            open_world_hint=False,
        ),
        _meta=meta,
    )
