"""What the server injects into tools: parameters that a caller cannot send.

Every catalogue has AccessClaims, Progress and Transactions. A catalogue registers providers for types of its own:

    @provider(transactional=True, public_errors=(NotebookError,), audited=is_note_id)
    async def open_notebook(call: ProviderCall) -> Notebook: ...

    CATALOGUE = Catalogue("Notes", ..., providers={Notebook: open_notebook})
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final, Generic, NoReturn, TypeVar, cast

from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.shared.protocol.claims import AccessClaims

ValueT = TypeVar("ValueT")


class _NoSession:
    """Stands for the session of a provider that has none."""

    def __getattr__(self, _: str) -> NoReturn:
        raise LookupError("Only a transactional provider has a session: @provider(transactional=True).")


_NO_SESSION = cast("AsyncSession", _NoSession())


@dataclass(frozen=True, slots=True)
class ProviderCall:
    """The call that a provider makes a value for."""

    claims: AccessClaims
    """The verified claims of the caller's token."""
    now: float
    """Seconds since the epoch."""
    session: AsyncSession = _NO_SESSION
    """The transaction of the call. For a provider that is not transactional, each use of it raises LookupError."""


def _nothing(_: object) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Provider(Generic[ValueT]):
    """Makes the value of an injected parameter, once for each call of a tool that has the parameter."""

    open: Callable[[ProviderCall], Awaitable[ValueT]]
    transactional: bool
    """The value works in the call's transaction. A tool that writes with it accepts an `idempotency_key`, and its audit
    event is committed with its changes."""
    public_errors: tuple[type[Exception], ...]
    """Exceptions whose text is shown to the agent. If their attributes `reason` and `remediation` are strings, they
    go to the audit log."""
    audited: Callable[[object], bool]
    """Tells which members of a result the audit log keeps, by their values."""


def provider(
    *,
    transactional: bool = False,
    public_errors: tuple[type[Exception], ...] = (),
    audited: Callable[[object], bool] = _nothing,
) -> Callable[[Callable[[ProviderCall], Awaitable[ValueT]]], Provider[ValueT]]:
    """Declare an async function as a provider. For the arguments see Provider."""

    def declare(function: Callable[[ProviderCall], Awaitable[ValueT]]) -> Provider[ValueT]:
        return Provider(function, transactional, public_errors, audited)

    return declare


class Progress(ABC):
    """The progress of a streaming tool's call."""

    @abstractmethod
    async def report(self, done: int, total: int, message: str | None = None) -> None:
        """Notify the caller that `done` of `total` items are finished.

        Do not call it within a transaction: a client that reads slowly would keep the transaction open.
        """


class Transactions(ABC):
    """Short transactions of a streaming tool that writes, each with its own audit event."""

    @abstractmethod
    def begin(self, opened: type[ValueT]) -> AbstractAsyncContextManager[ValueT]:
        """Open the value of a transactional provider in a transaction that commits when the block ends.

        The block is not interrupted: if the call is cancelled within it, the transaction still ends normally, and the
        next one does not begin.

        Raises:
            ToolFailed: the token expired during the call, or the database did not accept the transaction.
            LookupError: the catalogue has no transactional provider of that type.
        """


BUILT_IN: Final[tuple[type, ...]] = (AccessClaims, Progress, Transactions)
"""Types that the server injects in every catalogue."""

Providers = dict[type, Provider[Any]]
"""Provider by the type of its value."""
