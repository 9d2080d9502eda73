"""Decides when the key sets of trusted issuers are fetched, outside of requests."""

import asyncio
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Final

from gatehouse.authserver.workloads.key_renewal import KeyRenewal
from gatehouse.authserver.workloads.registry import IssuerCache, TrustedIssuer
from gatehouse.shared.service.deadline import DeadlineExceeded, before_deadline
from gatehouse.shared.service.request_threads import RequestThreads

THREADS: Final = 3
"""Fetches of one process at a time: one of what is due, and the others for requests. Each takes at most 10 s."""


class KeyRefresher:
    """Fetches the key sets that are due, and that of an issuer that signed with an unknown key."""

    def __init__(self, issuers: IssuerCache, renewal: KeyRenewal) -> None:
        self._issuers = issuers
        self._renewal = renewal
        self._threads = RequestThreads(THREADS, "issuer-keys")
        self._round: Future[None] | None = None
        self._running: dict[str, Future[None]] = {}
        self._lock = threading.Lock()

    def refresh_due(self) -> None:
        """Begin to fetch the key sets that are due, one after the other, unless an earlier call still does that.

        One thread is enough for this: an issuer that does not answer delays only others that are due, and the last key
        sets stay in use. Raises SQLAlchemyError.
        """
        if self._round is None or self._round.done():
            self._round = self._threads.submit(self._refresh, self._renewal.due())

    def _refresh(self, names: Sequence[str]) -> None:
        for name in names:
            fetch, is_new = self._join(name)
            if is_new:
                self._run(name, fetch)

    def begin(self, issuer: TrustedIssuer) -> Future[None]:
        """Begin to fetch the keys of an issuer, unless that is under way. Return what ends with the fetch.

        Raises:
            DeadlineExceeded: the process stops.
        """
        fetch, is_new = self._join(issuer.name)
        if is_new:
            try:
                self._threads.submit(self._run, issuer.name, fetch)
            except DeadlineExceeded:
                self._end(issuer.name, fetch)
                raise
        return fetch

    async def refetch(self, issuer: TrustedIssuer) -> None:
        """Fetch the keys of an issuer, or wait for the fetch that runs.

        Raises:
            DeadlineExceeded: the request can wait no longer, while the fetch goes on, or the process stops.
        """
        await before_deadline(asyncio.shield(asyncio.wrap_future(self.begin(issuer))))

    def _join(self, name: str) -> "tuple[Future[None], bool]":
        """Return the result of the fetch of an issuer, and whether the caller must run it."""
        with self._lock:
            running = self._running.get(name)
            if running is not None:
                return running, False
            fetch = self._running[name] = Future[None]()
            # It cannot be cancelled: others may wait for it, too.
            fetch.set_running_or_notify_cancel()
            return fetch, True

    def _run(self, name: str, fetch: "Future[None]") -> None:
        self._renewal.renew(name)
        # The requests that wait read the new keys.
        self._issuers.forget(None)
        self._end(name, fetch)

    def _end(self, name: str, fetch: "Future[None]") -> None:
        with self._lock:
            del self._running[name]
        fetch.set_result(None)

    def close(self) -> None:
        """Stop. A fetch that runs ends without a result."""
        self._renewal.stop()
        self._threads.stop()
