"""Idempotency keys: a call that is repeated with the same key runs once, and both calls get its result.

A key belongs to one client with the static claims of its token, and to one tool. It is kept for 24 hours. The
transaction of a write inserts the key's row first and commits it with the write: the row exists exactly if the write
does, and of two concurrent calls the second waits for the first.
"""

import asyncio
import hashlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Final, Protocol
from weakref import WeakValueDictionary

import anyio
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Row, and_, delete, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.orm import Session

from gatehouse.resourceserver.catalogue import Tool, ToolFailed
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.models import IdempotencyKeyRow
from gatehouse.resourceserver.db.request_database import RequestDatabase, acquire
from gatehouse.resourceserver.dispatch.payload import Answer, kept_answer
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.deadline import remaining

KEPT_FOR: Final = 24 * 3600
"""Seconds that a key is kept."""

MAX_RESULT: Final = 64 * 1024
"""Maximum length of a result that is kept, in characters of JSON."""

PRUNE_INTERVAL: Final = 60.0
"""Seconds between two removals of old keys, in one process."""

_LOCK_NOT_AVAILABLE = "55P03"
"""PostgreSQL's SQLSTATE for a lock timeout."""

log = logging.getLogger(__name__)


class KeyConflict(ToolFailed):
    """The key was used for another call."""

    def __init__(self) -> None:
        text = (
            "This idempotency_key was used for this tool with other arguments within the last 24 hours. To repeat that "
            "call, send its arguments; for another call, make a new key."
        )
        super().__init__(text, reason=text)


class KeyInUse(ToolFailed):
    """Another call with the key is in progress."""

    def __init__(self) -> None:
        text = "A call with this idempotency_key is in progress. Repeat yours in a few seconds."
        super().__init__(text, reason=text)


class KeyTaken(KeyInUse):
    """A call with the key committed while this one waited. A new transaction sees it."""


class ResultTooLarge(ToolFailed):
    """The result cannot be kept for a repeated call, so the call is rolled back."""

    def __init__(self) -> None:
        text = (
            "The result is too large to be kept for a repeated call, so nothing was changed. "
            "Call again without idempotency_key."
        )
        super().__init__(text, reason=text)


@dataclass(frozen=True, slots=True)
class KeyedCall:
    """A call with a key: the caller, the tool, and the arguments."""

    static_claims: str
    """SHA-256 of the static claims of the caller's token, in hexadecimal digits. They may name a tenant, such as a
    workspace: a client that is moved to another one never receives a result of the first."""
    client_id: str
    tool: str
    key: str
    arguments: bytes
    """SHA-256 of the arguments without the key, as they were sent, and of the defaults of those that were not."""

    @property
    def identity(self) -> tuple[str, ...]:
        """The primary key of the row: everything but the arguments."""
        return self.static_claims, self.client_id, self.tool, self.key

    def row(self) -> ColumnElement[bool]:
        """Return the condition that finds the key."""
        return and_(*(column == getattr(self, column.name) for column in inspect(IdempotencyKeyRow).primary_key))


def keyed_call(claims: AccessClaims, tool: Tool, arguments: BaseModel, sent: Mapping[str, Any]) -> KeyedCall | None:
    """Return the call with these arguments, validated and as they were sent; None if they contain no key."""
    key = getattr(arguments, IDEMPOTENCY_KEY, None)
    if key is None:
        return None
    # Those that were sent win, because a dump leaves out SecretStr and fields with exclude=True.
    values = {**arguments.model_dump(mode="json", by_alias=True), **sent}
    del values[IDEMPOTENCY_KEY]
    return KeyedCall(_digest(dict(claims.static)).hex(), claims.client_id, tool.name, key, _digest(values))


def _digest(value: object) -> bytes:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).digest()


class Record(Protocol):
    """Records a result, and whether it is a replay, in the transaction of its call."""

    def __call__(self, session: Session, content: dict[str, Any], **detail: Any) -> None:
        """Record it. Raises SQLAlchemyError."""
        ...


class IdempotencyKeys:
    """The idempotency keys of all callers of a server."""

    def __init__(self, database: RequestDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._in_use: WeakValueDictionary[tuple[str, ...], asyncio.Semaphore] = WeakValueDictionary()

    async def run_once(self, call: KeyedCall, run: Callable[[Session], Answer], record: Record) -> Answer:
        """Run a call in one transaction with its key and its record, or return the result of the first call.

        Raises:
            KeyConflict: the key was used with other arguments.
            KeyInUse: another call with the key is still in progress after the lock timeout.
            ResultTooLarge: the result cannot be kept. As with every exception of `run`, nothing was changed.
        """
        in_transaction = partial(self._run, call, run, record)
        async with self._only_call(call):
            try:
                return await self._database.run_write(in_transaction)
            except KeyTaken:
                return await self._database.run_write(in_transaction)

    @asynccontextmanager
    async def _only_call(self, call: KeyedCall) -> AsyncIterator[None]:
        """Let other calls of this process with the key wait here, where they occupy no thread. Raises KeyInUse."""
        # The dictionary forgets a key that no call holds or waits for.
        turn = self._in_use.setdefault(call.identity, asyncio.Semaphore(1))
        try:
            await acquire(turn, self._database.lock_timeout / 1000)
        except PoolTimeout:
            raise KeyInUse from None
        try:
            yield
        finally:
            turn.release()

    def _run(self, call: KeyedCall, run: Callable[[Session], Answer], record: Record, session: Session) -> Answer:
        kept = self.reserve(session, call)
        if kept is not None:
            answer = kept_answer(kept)
            record(session, kept, replayed=True)
            return answer
        answer = run(session)
        content = answer.content or {}
        record(session, content)
        _keep(session, call, content)
        return answer

    def reserve(self, session: Session, call: KeyedCall) -> dict[str, Any] | None:
        """Return the result of the first call with the key, or insert the key in this transaction and return None.

        Raises:
            KeyConflict: the key was used with other arguments.
            KeyInUse: another call with the key is still in progress after the lock timeout.
            KeyTaken: another call with the key committed in the meantime.
        """
        now = int(self._clock())
        found = _find(session, call)
        if found is not None and found.created_at > now - KEPT_FOR:
            if found.arguments != call.arguments:
                raise KeyConflict
            result: dict[str, Any] = json.loads(found.result)
            return result
        try:
            self._limit_waiting(session)
            if found is not None:
                _remove(session, call, found.created_at)
            _insert(session, call, now)
        except IntegrityError:
            raise KeyTaken from None
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise KeyInUse from None
            raise
        return None

    def _limit_waiting(self, session: Session) -> None:
        """Let a call on PostgreSQL wait no longer for one of another node than on SQLite: it occupies a thread."""
        if session.get_bind().dialect.name == "postgresql":
            # Zero would be no limit.
            limit = max(1, int(remaining(self._database.lock_timeout / 1000) * 1000))
            session.execute(text(f"SET LOCAL lock_timeout = {limit}"))

    async def prune_regularly(self, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        """Prune once a minute, forever."""
        while True:
            await sleep(PRUNE_INTERVAL)
            await self.prune()

    async def prune(self) -> None:
        """Remove expired keys. A failure is logged, and the next attempt follows a minute later."""
        row = IdempotencyKeyRow
        expired = delete(row).where(row.created_at <= int(self._clock()) - KEPT_FOR)
        try:
            await self._database.run_write(lambda session: session.execute(expired))
        except Exception as error:  # noqa: BLE001 - any exception would end the lifespan, with every other background task
            log.error("old idempotency keys were not removed: %s", type(error).__name__)


def _find(session: Session, call: KeyedCall) -> Row[bytes, str, int] | None:
    row = IdempotencyKeyRow
    return session.execute(select(row.arguments, row.result, row.created_at).where(call.row())).first()


def _remove(session: Session, call: KeyedCall, created_at: int) -> None:
    # A key that another call inserted in the meantime stays, so the following insert fails.
    session.execute(delete(IdempotencyKeyRow).where(call.row(), IdempotencyKeyRow.created_at == created_at))


def _insert(session: Session, call: KeyedCall, now: int) -> None:
    session.execute(insert(IdempotencyKeyRow).values(**asdict(call), result="", created_at=now))


def _keep(session: Session, call: KeyedCall, content: dict[str, Any]) -> None:
    written = json.dumps(content)
    if len(written) > MAX_RESULT:
        raise ResultTooLarge
    session.execute(update(IdempotencyKeyRow).where(call.row()).values(result=written))
