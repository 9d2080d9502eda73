"""A tool as dispatch calls it, made from a declaration or from an SDK server's tool."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from mcp_types import Tool as ToolDescription
from pydantic import BaseModel
from pydantic_core import SchemaSerializer

from gatehouse.resourceserver.catalogue.providers import Provider
from gatehouse.shared.service.rates import Rate


class ToolFailed(Exception):
    """The call was allowed and failed. The message is shown to the agent and says what to do next.

    `reason` and `remediation` go to the audit log, for the operator. Without a reason, the audit log contains the name
    of the exception's class, because the message may repeat an argument.
    """

    outcome: ClassVar = "failed"
    """The outcome in the audit log."""

    def __init__(
        self, message: str, *, reason: str | None = None, remediation: str | None = None, code: int | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.remediation = remediation
        self.code = code
        """The code of a JSON-RPC error, which replaces a result with `isError`."""


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
    function: Callable[..., Any]
    in_thread: bool
    """The function is a plain one. Else it is async, and runs on the event loop."""
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
    limit: Rate | None = None
    """How often one client may call it; None for the default of the settings."""
    described: ToolDescription | None = None
    """The description of a forwarded tool by its own server; None for a tool that was declared here."""

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
