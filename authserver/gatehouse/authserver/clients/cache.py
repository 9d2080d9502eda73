"""The clients that requests authenticate, in memory: each is read again when it is a second old.

Requests on the event loop that have to wait for a client are served in groups: while one group of clients is read, the
next one forms. Otherwise each token request of a large fleet, whose clients are never in memory, would cost a thread
and a transaction.
"""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import suppress
from typing import Final, TypeAlias

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.authserver.clients.registry import Client, find_clients
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.http import DeadlineExceeded, before_deadline
from gatehouse.shared.service.cache import MAX_AGE, LoadingCache, MustWait

MAX_GROUP: Final = 64
"""Clients that are read with one query, at most."""

MAX_WAITING: Final = 4096
"""Clients that may wait to be read. While the database hangs, those of requests that have given up would add up."""

_Group: TypeAlias = "dict[str, asyncio.Future[Client | None]]"


class ClientCache:
    """The clients of one process. An unknown client is remembered as well, after the same work."""

    def __init__(
        self, database: Database, *, max_age: float = MAX_AGE, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._monotonic = monotonic
        self._clients: LoadingCache[str, Client | None] = LoadingCache(
            lambda client_id: find_clients(database, [client_id])[client_id], max_age=max_age, monotonic=monotonic
        )
        self._waiting: _Group = {}
        self._reading: asyncio.Task[None] | None = None

    def get_and_wait(self, client_id: str) -> Client | None:
        """Return a client; None if it is unknown. Not for use on an event loop. Raises SQLAlchemyError."""
        return self._clients.get(client_id)

    async def get_async(self, client_id: str, pool: Executor | None) -> Client | None:
        """Return a client; None if it is unknown. It is read in a thread of the pool if it has to be read.

        Raises:
            DeadlineExceeded, SQLAlchemyError: the database is unavailable, or too many clients wait to be read.
        """
        with suppress(MustWait):
            return self._clients.get(client_id, wait=False)
        waiting = self._waiting.get(client_id)
        if waiting is None:
            if len(self._waiting) >= MAX_WAITING:
                raise DeadlineExceeded
            waiting = self._waiting[client_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_waiting(pool))
        # Other requests may wait for the same client.
        return await before_deadline(asyncio.shield(waiting))

    async def _read_waiting(self, pool: Executor | None) -> None:
        """Read group after group, in a thread, until no request waits."""
        while self._waiting:
            if group := self._next_group():
                await self._read(group, pool)

    def _next_group(self) -> _Group:
        """Return what to read next. Clients that were read while they waited are not read again."""
        group: _Group = {}
        for client_id in list(self._waiting)[:MAX_GROUP]:
            waiting = self._waiting.pop(client_id)
            try:
                waiting.set_result(self._clients.get(client_id, wait=False))
            except MustWait:
                group[client_id] = waiting
        return group

    async def _read(self, group: _Group, pool: Executor | None) -> None:
        """Read a group, and one client after the other if that fails for another reason than the database."""
        try:
            # The thread does not get the deadline of a request, because several wait.
            clients = await asyncio.get_running_loop().run_in_executor(pool, self._load, list(group))
        except Exception as error:  # noqa: BLE001 - whatever a corrupt row raises
            if len(group) > 1 and not isinstance(error, SQLAlchemyError):
                for client_id, waiting in group.items():
                    await self._read({client_id: waiting}, pool)
                return
            for waiting in group.values():
                waiting.set_exception(error)
                # All requests may have given up. The error would then be logged as one that nobody handled.
                waiting.exception()
            return
        for client_id, waiting in group.items():
            waiting.set_result(clients[client_id])

    def _load(self, client_ids: Sequence[str]) -> Mapping[str, Client | None]:
        started = self._monotonic()
        clients = find_clients(self._database, client_ids)
        for client_id, client in clients.items():
            self._clients.put(client_id, client, started)
        return clients
