"""Short transactions for a tool that works for seconds, each with its audit event.

SQLite has one writer: a tool that kept one transaction open for as long as it works would block all others.
"""

import itertools
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Concatenate, Final

from sqlalchemy import event, inspect
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from gatehouse.resourceserver.catalogue import Provider, ProviderCall, ToolFailed, Transactions
from gatehouse.resourceserver.catalogue.providers import ParamsT, ResultT, ValueT
from gatehouse.resourceserver.db.request_database import CommitUnknown, RequestDatabase
from gatehouse.shared.protocol import token_validation
from gatehouse.shared.protocol.claims import AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service import deadline
from gatehouse.shared.service.audit.events import AuditEvent
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.requests import UNAVAILABLE

LISTED: Final = 100
"""Maximum number of identifiers in one audit event. A transaction that changes more has several events."""

log = logging.getLogger(__name__)


class TransactionFailed(ToolFailed):
    """The database rejected a transaction, which changed nothing."""

    def __init__(self) -> None:
        super().__init__(UNAVAILABLE, reason=UNAVAILABLE)


class TransactionUnknown(ToolFailed):
    """The database did not report whether it committed a transaction."""

    def __init__(self, error: CommitUnknown) -> None:
        text = (
            "The outcome is unknown: the database did not report whether the last changes were saved. Read the current "
            "state before you repeat the call."
        )
        super().__init__(text, reason=str(error))


class TokenExpired(ToolFailed):
    """The caller's token expired during the call."""

    def __init__(self) -> None:
        text = "The access token expired during the call. Obtain a new one, and repeat the call."
        super().__init__(text, reason=text)


class CallTransactions(Transactions):
    """The transactions of one call."""

    def __init__(
        self,
        database: RequestDatabase,
        claims: AccessClaims,
        providers: Mapping[type, Provider[Any]],
        clock: Clock,
        rows: AuditRows,
        make_event: Callable[[Mapping[str, Any]], AuditEvent],
    ) -> None:
        """`make_event` returns an audit event of the call with the given detail."""
        self._database = database
        self._claims = claims
        self._providers = providers
        self._clock = clock
        self._rows = rows
        self._make_event = make_event
        self._numbers = itertools.count(1)

    async def run(
        self,
        opened: type[ValueT],
        function: Callable[Concatenate[ValueT, ParamsT], ResultT],
        /,
        *args: ParamsT.args,
        **kwargs: ParamsT.kwargs,
    ) -> ResultT:
        """Run a function in a thread, with a provider's value, in a transaction that commits together with its event.

        Raises:
            TokenExpired: the token has expired. Otherwise a client that reads slowly could prolong a call.
            TransactionFailed: nothing was changed.
            TransactionUnknown: the database did not report whether it committed the transaction.
            LookupError: there is no transactional provider of that type.
            BaseException: whatever the function raises. Nothing was changed.
        """
        provider: Provider[ValueT] | None = self._providers.get(opened)
        if provider is None or not provider.transactional:
            raise LookupError(f"The catalogue has no transactional provider of {opened.__name__}.")
        now = self._clock()
        try:
            token_validation.check_time(self._claims, now)
        except InvalidClaims:
            raise TokenExpired from None
        work = partial(self._run, provider, now, lambda value: function(value, *args, **kwargs))
        try:
            # The deadline of the request does not count the work of the tool, and passes during it.
            with deadline.renewed():
                return await self._database.run_write(work)
        except CommitUnknown as error:
            log.error("a transaction of a streaming tool: %s", error)
            raise TransactionUnknown(error) from error
        except SQLAlchemyError as error:
            log.error("a transaction of a streaming tool failed: %s", type(error).__name__)
            raise TransactionFailed from error

    def _run(
        self, provider: Provider[ValueT], now: float, function: Callable[[ValueT], ResultT], session: Session
    ) -> ResultT:
        changed = _watch(session, provider.audited)
        result = function(provider.open(ProviderCall(self._claims, now, session)))
        session.flush()
        self._record_changes(session, list(changed))
        return result

    def _record_changes(self, session: Session, identifiers: list[str]) -> None:
        number = next(self._numbers)
        details = (
            {"transaction": number, "changed": identifiers[start : start + LISTED]}
            for start in range(0, max(len(identifiers), 1), LISTED)
        )
        self._rows.record(session, *map(self._make_event, details))


def _watch(session: Session, audited: Callable[[object], bool]) -> dict[str, None]:
    """Collect the audited primary keys of all rows that the session inserts, updates or deletes, in this order."""
    changed: dict[str, None] = {}

    @event.listens_for(session, "after_flush")
    def collect(flushed: Session, _: object) -> None:
        for row in (*flushed.new, *flushed.dirty, *flushed.deleted):
            keys = inspect(row).mapper.primary_key_from_instance(row)
            changed.update((key, None) for key in keys if audited(key))

    return changed
