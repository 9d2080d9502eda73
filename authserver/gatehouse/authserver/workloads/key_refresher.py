"""Decides when the key sets of trusted issuers are fetched. They are stored, so one node fetches for all."""

import asyncio
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final

from gatehouse.authserver.workloads.key_fetching import KeyFetcher
from gatehouse.authserver.workloads.registry import IssuerCache, TrustedIssuer
from gatehouse.shared.service.deadline import before_deadline

THREADS: Final = 2
"""Fetches of one process at a time. Each takes at most 10 s."""


class KeyRefresher:
    """Fetches the key sets that are due, and that of an issuer that signed with an unknown key."""

    def __init__(self, issuers: IssuerCache, fetcher: KeyFetcher) -> None:
        self._issuers = issuers
        self._fetcher = fetcher
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="issuer-keys")
        self._running: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def refresh_due(self) -> None:
        """Begin to fetch every key set that is due. Raises SQLAlchemyError."""
        for name in self._fetcher.due():
            self._begin(name)

    async def refetch(self, issuer: TrustedIssuer) -> None:
        """Fetch the keys of an issuer, or wait for another request that does.

        Raises:
            DeadlineExceeded: the request can wait no longer. The fetch goes on.
        """
        await before_deadline(asyncio.shield(asyncio.wrap_future(self._begin(issuer.name))))

    def _begin(self, name: str) -> "Future[None]":
        with self._lock:
            running = self._running.get(name)
            if running is None:
                running = self._running[name] = self._threads.submit(self._run, name)
            return running

    def _run(self, name: str) -> None:
        try:
            self._fetcher.renew(name)
        finally:
            self._issuers.forget(None)
            with self._lock:
                del self._running[name]

    def close(self) -> None:
        """Stop. Waits for the fetches that run."""
        self._threads.shutdown(cancel_futures=True)
