"""How tools and resources are declared.

    tools = ToolGroup()

    @tools.tool(scopes=["notes:read"], read_only=True)
    async def find_note(notebook: Notebook, title: str) -> Note:
        \"\"\"Find a note by its title. An agent reads this text to decide whether to call the tool.\"\"\"

The name and the argument schema come from the signature, the description from the docstring, the result schema from the
return type. The server injects parameters whose types are built in or have a provider (catalogue/providers.py); a
caller cannot send them. A tool must declare its scopes; `scopes=ANY_VALID_TOKEN` declares that it needs only a valid
token. A tool that works for seconds is declared with `streaming=True`: it takes Progress, and Transactions instead of
the value of a transactional provider. A tool raises ToolFailed to tell an agent what to fix.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType
from typing import Any, Final, TypeVar

from mcp_types import Tool as ToolDescription
from pydantic import BaseModel
from pydantic_core import SchemaSerializer

from gatehouse.resourceserver.catalogue.output_schema import strict_serializer
from gatehouse.resourceserver.catalogue.providers import BUILT_IN, Progress, Provider, Providers, Transactions
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


class _AnyValidToken(Enum):
    ANY_VALID_TOKEN = "any valid token"  # noqa: S105 - a name, not a token


ANY_VALID_TOKEN: Final = _AnyValidToken.ANY_VALID_TOKEN
"""The scopes of a tool that any caller with a valid token may call."""

ToolScopes = Sequence[str] | _AnyValidToken
"""The scopes that a tool needs (all of them), or ANY_VALID_TOKEN."""

FunctionT = TypeVar("FunctionT", bound=ToolFunction)


class ToolFailed(Exception):
    """The call was allowed and failed. The message is shown to the agent and says what to do next.

    `reason` and `remediation` go to the audit log, for the operator. Without a reason, the audit log contains the name
    of the exception's class, because the message may repeat an argument.
    """

    def __init__(self, message: str, *, reason: str | None = None, remediation: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.remediation = remediation


@dataclass(frozen=True, slots=True)
class Scope:
    """A scope, described for the admin who grants it, and the scopes that it implies."""

    scope: str
    description: str
    implies: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Tool:
    """A tool as dispatch calls it."""

    name: str
    description: str
    scopes: frozenset[str]
    """The caller needs all of them. Empty only for ANY_VALID_TOKEN."""
    read_only: bool
    destructive: bool
    idempotent: bool
    streaming: bool
    """It reports progress while it works, and writes in transactions of its own."""
    function: ToolFunction
    injected: Mapping[str, type]
    """Type by parameter name."""
    arguments: type[BaseModel]
    result: type[BaseModel]
    """The declared type of the result."""
    serializer: SchemaSerializer
    """Makes the JSON of a result."""
    input_schema: Mapping[str, Any]
    output_schema: Mapping[str, Any]
    source: str
    """File and line of the declaration, for messages."""
    providers: Mapping[type, Provider[Any]] = field(default_factory=dict)
    """The providers of its injected values and, for a tool with Transactions, of those that a transaction can open."""
    described: ToolDescription | None = None
    """The SDK server's description of a forwarded tool; None for a tool that was declared here."""

    @property
    def needs_context(self) -> bool:
        """Whether a call needs the SDK's context of its request: to report progress, or to forward the call."""
        return self.streaming or self.described is not None

    @property
    def joins_transaction(self) -> bool:
        """Whether an injected value works in the transaction of the call."""
        return not self.streaming and any(provider.transactional for provider in self.providers.values())

    @property
    def transactional(self) -> bool:
        """Whether a failed call changes nothing: the tool only reads, or it writes in the call's transaction."""
        return not self.streaming and (self.read_only or self.joins_transaction)

    @property
    def public_errors(self) -> tuple[type[Exception], ...]:
        """Exceptions whose text is shown to the agent."""
        return (ToolFailed, *(error for provider in self.providers.values() for error in provider.public_errors))

    def is_audited(self, value: object) -> bool:
        """Tell whether the audit log keeps a member of the result with this value."""
        return any(provider.audited(value) for provider in self.providers.values())


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

    def read(self, providers: Providers) -> Tool:
        """Return the tool.

        Raises:
            InvalidCatalogue: there is no description, a parameter or the result has no usable type, or the injected
                types contradict the declaration.
        """
        name, source = self.function.__name__, self.source
        description = read_description(self.function, name, source)
        injected, fields, result = read_signature(self.function, name, source, (*BUILT_IN, *providers))
        used = self._used(set(injected.values()), providers)
        self._check_injected(set(injected.values()), used)
        if not self.read_only and not self.streaming and any(provider.transactional for provider in used.values()):
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
            injected=MappingProxyType(injected),
            arguments=arguments,
            result=result,
            serializer=strict_serializer(result),
            input_schema=MappingProxyType(input_schema),
            output_schema=MappingProxyType(output_schema),
            source=source,
            providers=MappingProxyType(used),
        )

    def _used(self, injected: set[type], providers: Providers) -> Providers:
        """Return the providers of the injected values, and of those that Transactions can open."""
        return {
            type_: provider
            for type_, provider in providers.items()
            if type_ in injected or (provider.transactional and Transactions in injected)
        }

    def _check_injected(self, injected: set[type], used: Providers) -> None:
        tool = f"{self.source}: {self.function.__name__}"
        if self.streaming != (Progress in injected):
            raise InvalidCatalogue(
                f"{tool} has only one of streaming=True and a parameter of the type Progress. Write both, or neither."
            )
        joining = [type_ for type_, provider in used.items() if provider.transactional and type_ in injected]
        if self.streaming and joining:
            raise InvalidCatalogue(
                f"{tool} is streaming, and would keep one transaction open for as long as it works. "
                f"Take Transactions instead of {joining[0].__name__}."
            )
        if Transactions not in injected:
            return
        if self.read_only or not self.streaming:
            raise InvalidCatalogue(f"{tool} takes Transactions, which only a streaming tool that writes can do.")
        if not used:
            raise InvalidCatalogue(f"{tool} takes Transactions, but its catalogue has no transactional provider.")


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
    ) -> Callable[[FunctionT], FunctionT]:
        """Declare an async function as a tool. Its catalogue reads the signature.

        Args:
            function: set only if the decorator is written without parentheses, which is an error: scopes are missing.
            scopes: the scopes that a caller needs (all of them), or ANY_VALID_TOKEN.
            read_only: it changes nothing. The audit event of any other tool is on disk before its response is sent, and
                commits together with the changes that it makes through a transactional provider.
            destructive: it removes or overwrites something. A hint to clients.
            idempotent: repeating the call has no further effect. A hint to clients.
            streaming: it reports progress while it works, and writes in transactions of its own, each with its event.

        Raises:
            InvalidCatalogue: there are no scopes.
        """
        if function is not None:
            read_scopes((), function.__name__, source_of(function))

        def declare(function: FunctionT) -> FunctionT:
            source = source_of(function)
            required = read_scopes(scopes, function.__name__, source)
            self.declarations.append(
                ToolDeclaration(function, source, required, read_only, destructive, idempotent or read_only, streaming)
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
