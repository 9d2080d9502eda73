"""Idempotency keys: a call that is repeated with the same key runs once, and both calls get its result.

A key belongs to one client with the static claims of its token, and to one tool. It is kept for 24 hours. The
transaction of a write inserts the key's row first and commits it with the write: the row exists exactly if the write
does, and of two concurrent calls the second waits for the first.
"""

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Protocol

import anyio
from pydantic import BaseModel
from sqlalchemy import ColumnElement, Row, and_, delete, insert, inspect, select, text, update
from sqlalchemy.exc import IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from gatehouse.resourceserver.catalogue import Tool, ToolFailed
from gatehouse.resourceserver.catalogue.signature import IDEMPOTENCY_KEY
from gatehouse.resourceserver.db.database import AsyncDatabase
from gatehouse.resourceserver.db.models import IdempotencyKeyRow
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

    async def __call__(self, session: AsyncSession, result: dict[str, Any], **detail: Any) -> None:
        """Record it. Raises SQLAlchemyError."""
        ...


class IdempotencyKeys:
    """The idempotency keys of all callers of a server."""

    def __init__(self, database: AsyncDatabase, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def run_once(
        self, call: KeyedCall, run: Callable[[AsyncSession], Awaitable[dict[str, Any]]], record: Record
    ) -> dict[str, Any]:
        """Run a call in one transaction with its key and its record, or return the result of the first call.

        Raises:
            KeyConflict: the key was used with other arguments.
            KeyInUse: another call with the key is still in progress after the lock timeout.
            ResultTooLarge: the result cannot be kept. As with every exception of `run`, nothing was changed.
        """
        try:
            return await self._run(call, run, record)
        except KeyTaken:
            return await self._run(call, run, record)

    async def _run(
        self, call: KeyedCall, run: Callable[[AsyncSession], Awaitable[dict[str, Any]]], record: Record
    ) -> dict[str, Any]:
        async with self._database.write() as session:
            kept = await self.reserve(session, call)
            if kept is not None:
                await record(session, kept, replayed=True)
                return kept
            result = await run(session)
            await record(session, result)
            await _keep(session, call, result)
            return result

    async def reserve(self, session: AsyncSession, call: KeyedCall) -> dict[str, Any] | None:
        """Return the result of the first call with the key, or insert the key in this transaction and return None.

        Raises:
            KeyConflict: the key was used with other arguments.
            KeyInUse: another call with the key is still in progress after the lock timeout.
            KeyTaken: another call with the key committed in the meantime.
        """
        now = int(self._clock())
        found = await _find(session, call)
        if found is not None and found.created_at > now - KEPT_FOR:
            if found.arguments != call.arguments:
                raise KeyConflict
            result: dict[str, Any] = json.loads(found.result)
            return result
        try:
            await self._limit_waiting(session)
            if found is not None:
                await _remove(session, call, found.created_at)
            await _insert(session, call, now)
        except IntegrityError:
            raise KeyTaken from None
        except OperationalError as error:
            if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
                raise KeyInUse from None
            raise
        return None

    async def _limit_waiting(self, session: AsyncSession) -> None:
        """Let a call on PostgreSQL wait no longer for another with its key than on SQLite: it holds a connection."""
        if session.get_bind().dialect.name == "postgresql":
            # Zero would be no limit.
            limit = max(1, int(remaining(self._database.lock_timeout / 1000) * 1000))
            await session.execute(text(f"SET LOCAL lock_timeout = {limit}"))

    async def prune_regularly(self, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        """Prune once a minute, forever."""
        while True:
            await sleep(PRUNE_INTERVAL)
            await self.prune()

    async def prune(self) -> None:
        """Remove expired keys. A failure is logged, and the next attempt follows a minute later."""
        row = IdempotencyKeyRow
        try:
            async with self._database.write() as session:
                await session.execute(delete(row).where(row.created_at <= int(self._clock()) - KEPT_FOR))
        except Exception as error:  # noqa: BLE001 - any exception would end the lifespan, with every other background task
            log.error("old idempotency keys were not removed: %s", type(error).__name__)


async def _find(session: AsyncSession, call: KeyedCall) -> Row[bytes, str, int] | None:
    row = IdempotencyKeyRow
    return (await session.execute(select(row.arguments, row.result, row.created_at).where(call.row()))).first()


async def _remove(session: AsyncSession, call: KeyedCall, created_at: int) -> None:
    # A key that another call inserted in the meantime stays, so the following insert fails.
    await session.execute(delete(IdempotencyKeyRow).where(call.row(), IdempotencyKeyRow.created_at == created_at))


async def _insert(session: AsyncSession, call: KeyedCall, now: int) -> None:
    await session.execute(insert(IdempotencyKeyRow).values(**asdict(call), result="", created_at=now))


async def _keep(session: AsyncSession, call: KeyedCall, result: dict[str, Any]) -> None:
    written = json.dumps(result)
    if len(written) > MAX_RESULT:
        raise ResultTooLarge
    await session.execute(update(IdempotencyKeyRow).where(call.row()).values(result=written))
