"""What the server injects into tools: parameters that a caller cannot send.

Every catalogue has AccessClaims, Progress and Transactions. A catalogue registers providers for types of its own:

    @provider(transactional=True, public_errors=(NotebookError,), audited=is_note_id)
    def open_notebook(call: ProviderCall) -> Notebook: ...

    CATALOGUE = Catalogue("Notes", ..., providers={Notebook: open_notebook})
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Concatenate, Final, Generic, Literal, NamedTuple, NoReturn, ParamSpec, TypeVar, cast, overload

from sqlalchemy.orm import Session

from gatehouse.shared.protocol.claims import AccessClaims

ValueT = TypeVar("ValueT")
ResultT = TypeVar("ResultT")
ParamsT = ParamSpec("ParamsT")


class _NoSession:
    """Stands for the session of a provider that has none."""

    def __getattr__(self, _: str) -> NoReturn:
        raise LookupError("Only a transactional provider has a session: @provider(transactional=True).")


_NO_SESSION = cast("Session", _NoSession())


class ProviderCall(NamedTuple):
    """The call that a provider makes a value for."""

    claims: AccessClaims
    """The verified claims of the caller's token."""
    now: float
    """Seconds since the epoch."""
    session: Session = _NO_SESSION
    """The transaction of the call. For a provider that is not transactional, each use of it raises LookupError."""


def _nothing(_: object) -> bool:
    return False


@dataclass(frozen=True, slots=True)
class Provider(Generic[ValueT]):
    """Makes the value of an injected parameter, once for each call of a tool that has the parameter."""

    open: Callable[[ProviderCall], Any]
    """Returns the value: a plain function if the provider is transactional, else an async function."""
    transactional: bool
    """The value works in the call's transaction. A tool that writes with it accepts an `idempotency_key`, and its audit
    event is committed with its changes."""
    public_errors: tuple[type[Exception], ...]
    """Exceptions whose text is shown to the agent. If their attributes `reason` and `remediation` are strings, they
    go to the audit log."""
    audited: Callable[[object], bool]
    """Tells which members of a result the audit log keeps, by their values."""


@overload
def provider(
    *,
    transactional: Literal[True],
    public_errors: tuple[type[Exception], ...] = (),
    audited: Callable[[object], bool] = _nothing,
) -> Callable[[Callable[[ProviderCall], ValueT]], Provider[ValueT]]: ...


@overload
def provider(
    *,
    transactional: Literal[False] = False,
    public_errors: tuple[type[Exception], ...] = (),
    audited: Callable[[object], bool] = _nothing,
) -> Callable[[Callable[[ProviderCall], Awaitable[ValueT]]], Provider[ValueT]]: ...


def provider(
    *,
    transactional: bool = False,
    public_errors: tuple[type[Exception], ...] = (),
    audited: Callable[[object], bool] = _nothing,
) -> Callable[[Callable[[ProviderCall], Any]], Provider[Any]]:
    """Declare a function as a provider: a plain one if it is transactional, else an async one.

    A transactional provider runs in the thread of the call's transaction, together with the tool. Any other runs on the
    event loop, before the tool. For the arguments see Provider.
    """

    def declare(function: Callable[[ProviderCall], Any]) -> Provider[Any]:
        return Provider(function, transactional, public_errors, audited)

    return declare


class Progress(ABC):
    """The progress of a streaming tool's call."""

    @abstractmethod
    async def report(self, done: float, total: float | None, message: str | None = None) -> None:
        """Notify the caller that `done` of `total` items are finished."""


class Transactions(ABC):
    """Short transactions of a streaming tool that writes, each with its own audit event."""

    @abstractmethod
    async def run(
        self,
        opened: type[ValueT],
        function: Callable[Concatenate[ValueT, ParamsT], ResultT],
        /,
        *args: ParamsT.args,
        **kwargs: ParamsT.kwargs,
    ) -> ResultT:
        """Run a plain function in a thread, in a transaction that commits when it returns.

        It gets the value of a transactional provider, then the other arguments. It is not interrupted: if the call is
        cancelled meanwhile, the transaction still ends normally, and the call ends at its next `await`.

            created = await transactions.run(Notebook, add_notes, texts)

        Args:
            opened: the type of the provider's value.
            function: works with the value, and must not keep it.
            args: further arguments of the function.
            kwargs: further arguments of the function.

        Raises:
            ToolFailed: the token expired during the call, or the database did not accept the transaction.
            LookupError: the catalogue has no transactional provider of that type.
            BaseException: whatever the function raises. Nothing was changed.
        """


BUILT_IN: Final[tuple[type, ...]] = (AccessClaims, Progress, Transactions)
"""Types that the server injects in every catalogue."""

Providers = dict[type, Provider[Any]]
"""Provider by the type of its value."""
