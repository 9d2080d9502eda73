"""How tools and resources are declared.

    tools = ToolGroup()

    @tools.tool(scopes=["notes:read"], read_only=True)
    def find_note(notebook: Notebook, title: str) -> Note:
        \"\"\"Find a note by its title. An agent reads this text to decide whether to call the tool.\"\"\"

The name and the argument schema come from the signature, the description from the docstring, the result schema from the
return type. The server injects parameters whose types are built in or have a provider (catalogue/providers.py); a
caller cannot send them. A tool must declare its scopes; `scopes=ANY_VALID_TOKEN` declares that it needs only a valid
token. A tool raises ToolFailed to tell an agent what to fix.

A plain function (`def`) runs in a thread and may block. It is the only kind that can have the value of a transactional
provider. An async function runs on the event loop and must not block. A tool that works for seconds is an async
function declared with `streaming=True`: it takes Progress, and Transactions instead of the value of a transactional
provider.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from gatehouse.resourceserver.catalogue.output_schema import strict_serializer
from gatehouse.resourceserver.catalogue.providers import BUILT_IN, Progress, Providers, Transactions
from gatehouse.resourceserver.catalogue.signature import (
    IDEMPOTENCY_KEY,
    IdempotencyKey,
    InvalidCatalogue,
    ToolFunction,
    read_arguments_model,
    read_description,
    read_result,
    read_signature,
    source_of,
)
from gatehouse.resourceserver.catalogue.tool import Tool
from gatehouse.shared.service.rates import Rate, parse_rate


class _AnyValidToken(Enum):
    ANY_VALID_TOKEN = "any valid token"  # noqa: S105 - a name, not a token


ANY_VALID_TOKEN: Final = _AnyValidToken.ANY_VALID_TOKEN
"""The scopes of a tool that any caller with a valid token may call."""

ToolScopes = Sequence[str] | _AnyValidToken
"""The scopes that a tool needs (all of them), or ANY_VALID_TOKEN."""

FunctionT = TypeVar("FunctionT", bound=ToolFunction)


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope, described for the admin who grants it, and the scopes that it implies."""

    scope: str
    description: str
    implies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Resource:
    """JSON that callers can read by its URI. All callers who may read it get the same content."""

    uri: str
    name: str
    description: str
    scopes: frozenset[str]
    """The caller needs all of them. Empty only for ANY_VALID_TOKEN."""
    read: Callable[[str], Mapping[str, Any]]
    """Returns the content. Called once, when the server starts, with its resource identifier (RFC 8707)."""


def declare_resource(
    uri: str,
    read: Callable[[str], Mapping[str, Any]],
    *,
    name: str,
    description: str,
    scopes: ToolScopes,
) -> Resource:
    """Declare a resource.

    Raises:
        InvalidCatalogue: it has no scopes.
    """
    return Resource(uri, name, description, read_scopes(scopes, uri, "resource"), read)


@dataclass(frozen=True, slots=True)
class ToolDeclaration:
    """A function that was declared as a tool. Its catalogue reads the signature, because it knows the providers."""

    function: ToolFunction
    source: str
    """File and line of the function, for messages."""
    scopes: frozenset[str]
    read_only: bool
    destructive: bool
    idempotent: bool
    streaming: bool
    limit: Rate | None

    def read(self, providers: Providers) -> Tool:
        """Return the tool.

        Raises:
            InvalidCatalogue: there is no description, a parameter or the result has no usable type, or the injected
                types contradict the declaration.
        """
        name, source = self.function.__name__, self.source
        description = read_description(self.function, name, source)
        injected, fields, result = read_signature(self.function, name, source, (*BUILT_IN, *providers))
        types = set(injected.values())
        used = self._used(types, providers)
        joining = [type_.__name__ for type_, provider in used.items() if provider.transactional and type_ in types]
        self._check_injected(types, used, joining)
        in_thread = not inspect.iscoroutinefunction(self.function)
        self._check_kind(in_thread, joining)
        if joining and not self.read_only:
            fields[IDEMPOTENCY_KEY] = (IdempotencyKey | None, None)
        arguments, input_schema = read_arguments_model(name, fields, source)
        output_schema = read_result(result, name, source)
        return Tool(
            name=name,
            description=description,
            scopes=self.scopes,
            read_only=self.read_only,
            destructive=self.destructive,
            idempotent=self.idempotent,
            streaming=self.streaming,
            function=self.function,
            in_thread=in_thread,
            injected=MappingProxyType(injected),
            arguments=arguments,
            result=result,
            serializer=strict_serializer(result),
            input_schema=MappingProxyType(input_schema),
            output_schema=MappingProxyType(output_schema),
            source=source,
            providers=MappingProxyType(used),
            limit=self.limit,
        )

    def _used(self, injected: set[type], providers: Providers) -> Providers:
        """Return the providers of the injected values, and of those that Transactions can open."""
        return {
            type_: provider
            for type_, provider in providers.items()
            if type_ in injected or (provider.transactional and Transactions in injected)
        }

    def _check_injected(self, injected: set[type], used: Providers, joining: Sequence[str]) -> None:
        """Refuse types that contradict the declaration. `joining` names those that work in the call's transaction."""
        tool = f"{self.source}: {self.function.__name__}"
        if self.streaming != (Progress in injected):
            raise InvalidCatalogue(
                f"{tool} has only one of streaming=True and a parameter of the type Progress. Write both, or neither."
            )
        if self.streaming and joining:
            raise InvalidCatalogue(
                f"{tool} is streaming, and would keep one transaction open for as long as it works. "
                f"Take Transactions instead of {joining[0]}."
            )
        if Transactions not in injected:
            return
        if self.read_only or not self.streaming:
            raise InvalidCatalogue(f"{tool} takes Transactions, which only a streaming tool that writes can do.")
        if not used:
            raise InvalidCatalogue(f"{tool} takes Transactions, but its catalogue has no transactional provider.")

    def _check_kind(self, in_thread: bool, joining: Sequence[str]) -> None:
        """Refuse a plain function where an async one is needed, and the reverse."""
        name = self.function.__name__
        tool = f"{self.source}: {name}"
        if in_thread and self.streaming:
            raise InvalidCatalogue(f"{tool} is streaming, and not async. Write it with async def.")
        if in_thread and inspect.iscoroutinefunction(inspect.unwrap(self.function)):
            raise InvalidCatalogue(f"{tool} has a decorator whose function is not async. Write that with async def.")
        if joining and not in_thread:
            raise InvalidCatalogue(
                f"{tool} takes {joining[0]}, which works in the call's transaction, and is async. Such a tool "
                f"runs in a thread: write def {name}, without async and await."
            )


@dataclass(slots=True)
class ToolGroup:
    """The tools that one module declares."""

    declarations: list[ToolDeclaration] = field(default_factory=list)

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
        limit: str | None = None,
    ) -> Callable[[FunctionT], FunctionT]:
        """Declare a function as a tool. Its catalogue reads the signature.

        Args:
            function: set only if the decorator is written without parentheses, which is an error: scopes are missing.
            scopes: the scopes that a caller needs (all of them), or ANY_VALID_TOKEN.
            read_only: it changes nothing. The audit event of any other tool is on disk before its response is sent, and
                commits together with the changes that it makes through a transactional provider.
            destructive: it removes or overwrites something. A hint to clients.
            idempotent: repeating the call has no further effect. A hint to clients.
            streaming: it reports progress while it works, and writes in transactions of its own, each with its event.
            limit: how often one client may call it, such as `30/minute`, or `off`. The default is
                RESOURCESERVER_LIMIT_TOOL_CALLS.

        Raises:
            InvalidCatalogue: there are no scopes, or the limit is not a rate.
        """
        if function is not None:
            read_scopes((), function.__name__, source_of(function))

        def declare(function: FunctionT) -> FunctionT:
            source = source_of(function)
            required = read_scopes(scopes, function.__name__, source)
            rate = read_limit(limit, function.__name__, source)
            repeatable = idempotent or read_only
            self.declarations.append(
                ToolDeclaration(function, source, required, read_only, destructive, repeatable, streaming, rate)
            )
            return function

        return declare


def read_scopes(scopes: ToolScopes, name: str, source: str) -> frozenset[str]:
    """Return the scopes of a tool: none for ANY_VALID_TOKEN.

    Raises:
        InvalidCatalogue: there are none, or they are a string instead of a list.
    """
    if isinstance(scopes, _AnyValidToken):
        return frozenset()
    if isinstance(scopes, str) and scopes:
        raise InvalidCatalogue(f'{source}: {name} has a string as its scopes. Write a list: ["{scopes}"].')
    if not scopes:
        raise InvalidCatalogue(
            f"{source}: {name} has no scopes. List them, or write scopes=ANY_VALID_TOKEN if any caller may call it."
        )
    return frozenset(scopes)


def read_limit(limit: str | None, name: str, source: str) -> Rate | None:
    """Return the limit of a tool; None for none. Raises InvalidCatalogue if it is not a rate."""
    if limit is None:
        return None
    try:
        return parse_rate(limit)
    except (TypeError, ValueError):
        raise InvalidCatalogue(
            f"{source}: {name} has the limit {limit!r}. Write a number of calls per second, minute or hour, such as "
            'limit="30/minute", or limit="off".'
        ) from None
