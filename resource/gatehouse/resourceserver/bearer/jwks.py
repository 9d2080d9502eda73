"""The issuer's key set (RFC 7517), polled in the background so that a request rarely waits for it.

An unknown `kid` triggers one fetch, shared by all requests that wait for it, and then none until a cooldown has passed:
a flood of invented kids costs the authorization server one request. An invalid set never replaces a valid one.
"""

import logging
import time
from collections.abc import Callable, Mapping

import anyio

from gatehouse.shared.protocol.jws import VerificationKey
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.fetch import Fetch, Fetched

POLL_INTERVAL = 5.0
"""Seconds between two polls. A key that was removed from the set is trusted until the next successful one."""

COOLDOWN = 5.0
"""Seconds after a fetch during which an unknown kid triggers no other fetch."""

FIRST_RETRY = 0.5
"""Seconds between two attempts while no key is known: the resource server may start before its issuer."""

FIRST_COOLDOWN = 0.125
"""Seconds after a fetch during which a request triggers no other fetch, while no key is known."""

log = logging.getLogger(__name__)


class KeysUnavailable(Exception):
    """No key of the issuer is known yet, so no token can be verified."""


class KeySource:
    """The last valid key set of one issuer."""

    def __init__(
        self,
        fetch: Fetch,
        monotonic: Callable[[], float] = time.monotonic,
        renewed: Callable[[], object] = lambda: None,
    ) -> None:
        """Create the source. `renewed` is called after each fetch that succeeded."""
        self._fetch = fetch
        self._monotonic = monotonic
        self._renewed = renewed
        self.keys: Mapping[str, VerificationKey] = {}
        """The current set, by kid."""
        self._etag: str | None = None
        self._last_fetch = float("-inf")
        self._fetches = 0
        self._fetching = anyio.Lock()
        self._failure: str | None = None
        self._unused: list[str] = []

    @property
    def ready(self) -> bool:
        """Whether any key is known."""
        return bool(self.keys)

    async def find(self, kid: str) -> VerificationKey | None:
        """Return a key by its kid. Fetch the set again if the kid is unknown and the cooldown has passed.

        Raises:
            KeysUnavailable: no key is known.
        """
        if (key := self.keys.get(kid)) is not None:
            return key
        await self._refresh_once(COOLDOWN if self.keys else FIRST_COOLDOWN)
        if not self.keys:
            raise KeysUnavailable
        return self.keys.get(kid)

    async def _refresh_once(self, cooldown: float) -> None:
        fetches = self._fetches
        async with self._fetching:
            # A fetch that finished while this task waited for the lock serves this task too.
            if self._fetches == fetches and self._monotonic() - self._last_fetch >= cooldown:
                await self.refresh()

    async def refresh(self) -> None:
        """Fetch the set. Keep the last valid one if that fails."""
        try:
            fetched = await self._fetch(self._etag)
            if fetched is not None:
                self._accept(fetched)
        except Exception as error:  # noqa: BLE001 - whatever fails, the last valid set stays in use
            # One log line for an outage, however long it lasts.
            if self._failure != str(error):
                log.warning("the issuer's key set was not renewed (%d keys stay in use): %s", len(self.keys), error)
            self._failure = str(error)
            return
        finally:
            # The cooldown starts at the end, because a fetch may take longer than the cooldown.
            self._fetches += 1
            self._last_fetch = self._monotonic()
        if self._failure is not None:
            log.info("the issuer's key set is renewed: %d keys in use", len(self.keys))
        self._failure = None
        self._renewed()

    def _accept(self, fetched: Fetched) -> None:
        unused: list[str] = []
        self.keys, self._etag = parse_key_set(fetched.document, unused.append), fetched.etag
        # Not at every poll of an issuer that sends no ETag.
        if unused != self._unused:
            self._unused = unused
            log.warning("keys of the issuer that are not used: %s", "; ".join(unused) or "none")

    async def poll(self) -> None:
        """Refresh forever: every half second until the first key is known, then at the poll interval."""
        while True:
            async with self._fetching:
                await self.refresh()
            await anyio.sleep(POLL_INTERVAL if self.keys else FIRST_RETRY)
