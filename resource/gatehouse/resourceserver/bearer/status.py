"""The issuer's status lists, which say which tokens were revoked (draft-ietf-oauth-status-list).

They are polled in the background, so that requests do not wait for them. A poll fetches the names of the lists, and
then the lists that have changed. Only lists on the issuer's own origin are fetched. A bit that was set stays set:
replaying an older list does not make a token valid again. The signed `iat` of a list determines its age.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

import anyio

from gatehouse.resourceserver.bearer.jwks import KeySource, KeysUnavailable
from gatehouse.resourceserver.bearer.status_names import read_names
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import MAX_LIFETIME, StatusReference, is_numeric_date
from gatehouse.shared.protocol.clock import LEEWAY, Clock
from gatehouse.shared.protocol.status_list import (
    MAX_LENGTH,
    MAX_LISTS,
    PATH,
    TYPE,
    InvalidStatusList,
    decode,
    is_set,
    parse_list_uri,
)
from gatehouse.shared.service.fetch import Fetch

REVOKED = "revoked"
"""The reason of a refusal if the bit of the token is set."""

COOLDOWN = 1.0
"""Seconds after a fetch during which a request for an unknown list triggers no other fetch."""

FIRST_RETRY = 0.5
"""Seconds between two polls while a list is unknown or stale: the resource server may start before its issuer."""

_REMEMBERED_FOR = MAX_LIFETIME + 2 * LEEWAY
"""Seconds that a list is kept after the issuer stopped naming it: a token may refer to it for that long."""

_CONCURRENT_FETCHES = 8
"""Lists that are fetched at the same time."""

log = logging.getLogger(__name__)


class StatusUnavailable(Exception):
    """No recent status list says whether the token was revoked."""


@dataclass(slots=True)
class _List:
    """What is known of one list."""

    uri: str
    fetch: Fetch
    used: float
    bits: bytes = b""
    issued_at: int | None = None
    """`iat` of the newest version that was fetched; None before the first."""
    expires_at: int = 0
    etag: str | None = None
    fetching: anyio.Lock = field(default_factory=anyio.Lock)
    fetches: int = 0
    last_fetch: float = float("-inf")
    failure: str | None = None
    unnamed_since: float | None = None
    """When a fetch first showed that the issuer no longer names it. Since then it is neither polled nor reported."""


class StatusLists:
    """The status lists of one issuer."""

    def __init__(
        self,
        issuer: str,
        fetch_from: Callable[[str], Fetch],
        keys: KeySource,
        clock: Clock,
        *,
        max_age: int,
        fail_open: bool,
        monotonic: Callable[[], float] = time.monotonic,
        renewed: Callable[[int], object] = lambda _: None,
    ) -> None:
        """Create the lists. `renewed` is called with their number after each refresh without a failure."""
        self._issuer = issuer
        self._fetch_from = fetch_from
        self._fetch_names = fetch_from(f"{issuer}{PATH}")
        self._keys = keys
        self._clock = clock
        self._max_age = max_age
        self._fail_open = fail_open
        self._monotonic = monotonic
        self._renewed = renewed
        self._lists: dict[str, _List] = {}
        self._named = False
        self._failure: str | None = None

    @property
    def state(self) -> str:
        """`ok`, or why tokens cannot be checked."""
        if not self._named:
            return "none is known"
        polled = self._polled()
        stale = sum(1 for known in polled if not self._is_fresh(known))
        return f"{stale} of {len(polled)} are stale" if stale else "ok"

    @property
    def ready(self) -> bool:
        """Whether tokens can be checked, or are accepted unchecked because the server fails open."""
        return self._fail_open or self.state == "ok"

    async def refusal(self, reference: StatusReference | None) -> str | None:
        """Return why a token's status makes it invalid, or None for a valid token.

        Raises:
            StatusUnavailable: the list is too old, and the server is set to fail closed.
        """
        if reference is None:
            return "the token has no status"
        known = self._lists.get(reference.uri)
        if known is None or known.issued_at is None:
            if parse_list_uri(self._issuer, reference.uri) is None:
                return "the status list is not the issuer's"
            known = await self._obtain(reference.uri)
        known.used = self._monotonic()
        if known.issued_at is not None:
            if reference.idx >= len(known.bits) * 8:
                return "the index is beyond the status list"
            if is_set(known.bits, reference.idx):
                return REVOKED
        if not self._is_fresh(known) and not self._fail_open:
            raise StatusUnavailable
        return None

    def _is_fresh(self, known: _List) -> bool:
        now = self._clock()
        return (
            known.issued_at is not None and now - known.issued_at <= self._max_age and now < known.expires_at + LEEWAY
        )

    async def _obtain(self, uri: str) -> _List:
        """Fetch an unknown list: once for all requests that wait for it, and not again during the cooldown."""
        known = self._know(uri)
        fetches = known.fetches
        async with known.fetching:
            if known.fetches == fetches and self._monotonic() - known.last_fetch >= COOLDOWN:
                await self._refresh(known)
        return known

    def _know(self, uri: str) -> _List:
        known = self._lists.get(uri)
        if known is None:
            if len(self._lists) >= MAX_LISTS:
                del self._lists[min(self._lists.values(), key=lambda candidate: candidate.used).uri]
            known = self._lists[uri] = _List(uri, self._fetch_from(uri), self._monotonic())
        return known

    async def _refresh(self, known: _List) -> None:
        """Fetch a list. Keep the known version if that fails."""
        try:
            fetched = await known.fetch(known.etag)
            if fetched is not None:
                await self._accept(known, fetched.document)
                known.etag = fetched.etag
        except Exception as error:  # noqa: BLE001 - whatever fails, the known version stays in use
            reason = "no key of the issuer is known" if isinstance(error, KeysUnavailable) else str(error)
            # One log line for an outage, however long it lasts.
            if known.failure != reason:
                log.warning("the status list %s was not renewed: %s", known.uri, reason)
            known.failure = reason
            return
        finally:
            known.fetches += 1
            known.last_fetch = self._monotonic()
        if known.failure is not None:
            log.info("the status list %s is renewed", known.uri)
        known.failure = None

    async def _accept(self, known: _List, document: bytes) -> None:
        """Validate and store a status list token (section 8.3).

        Raises:
            InvalidStatusList: it is not a list of this URI, expired, or shorter than before.
            InvalidToken: its signature or form is invalid.
            KeysUnavailable: no key of the issuer is known.
        """
        token = document.decode("ascii", "replace")
        header = jws.read_header(token, MAX_LENGTH)
        if header.typ != TYPE:
            raise InvalidStatusList(f"typ is not {TYPE}")
        key = await self._keys.find(header.kid or "")
        if key is None:
            raise InvalidStatusList("kid is not in the issuer's key set")
        claims = jws.verify(token, header, key)
        if claims.get("sub") != known.uri:
            raise InvalidStatusList("sub is not the list's URI")
        issued_at, expires_at, now = claims.get("iat"), claims.get("exp"), self._clock()
        if not is_numeric_date(issued_at) or not is_numeric_date(expires_at):
            raise InvalidStatusList("iat or exp is not a whole number of seconds")
        if issued_at > now + LEEWAY or expires_at + LEEWAY <= now:
            raise InvalidStatusList("expired, or issued in the future")
        bits = decode(claims.get("status_list"))
        if len(bits) < len(known.bits):
            raise InvalidStatusList("the list is shorter than it was")
        known.bits = _united(known.bits, bits)
        # A version older than the known one must not change its times.
        if known.issued_at is None or issued_at > known.issued_at:
            known.issued_at, known.expires_at = issued_at, expires_at

    async def refresh(self) -> None:
        """Fetch the names of the lists, and then every list that may have changed."""
        named = await self._fetch_named()
        if named is not None:
            self._follow(named)
        changed = [known for known in self._polled() if named is None or self._may_differ(known, named.get(known.uri))]
        limiter = anyio.CapacityLimiter(_CONCURRENT_FETCHES)

        async def renew(known: _List) -> None:
            async with limiter, known.fetching:
                await self._refresh(known)

        async with anyio.create_task_group() as tasks:
            for known in changed:
                tasks.start_soon(renew, known)
        polled = self._polled()
        if named is not None and all(known.failure is None for known in polled):
            self._renewed(len(polled))

    def _may_differ(self, known: _List, etag: str | None) -> bool:
        """Tell whether a list may differ from the known version. `etag` is the tag that the issuer names, if it does.

        An issuer that renames the tag of a list with each new signature, as Gatehouse does, keeps the list fresh. For
        any other, the list is fetched when it is too old.
        """
        return etag is None or etag != known.etag or known.failure is not None or not self._is_fresh(known)

    def _polled(self) -> list[_List]:
        return [known for known in self._lists.values() if known.unnamed_since is None]

    def _follow(self, named: Mapping[str, str | None]) -> None:
        """Add the lists that the issuer names, and drop others once no token can refer to them."""
        now = self._monotonic()
        for uri, known in list(self._lists.items()):
            if uri in named:
                known.unnamed_since = None
            elif known.unnamed_since is None:
                known.unnamed_since = now
            if known.unnamed_since is not None and (
                known.issued_at is None or now - known.unnamed_since > _REMEMBERED_FOR
            ):
                del self._lists[uri]
        for uri in named:
            self._know(uri)

    async def _fetch_named(self) -> Mapping[str, str | None] | None:
        """Return what `read_names` does, or None if that fails."""
        try:
            named = read_names(await self._fetch_names(None), self._issuer)
        except Exception as error:  # noqa: BLE001 - known lists are still polled
            if self._failure != str(error):
                log.warning("the names of the issuer's status lists were not fetched: %s", error)
            self._failure = str(error)
            return None
        self._named, self._failure = True, None
        return named

    async def poll(self, interval: float, sleep: Callable[[float], Awaitable[None]] = anyio.sleep) -> None:
        """Refresh forever: at the interval, and more often while a list is unknown or stale."""
        while True:
            await self.refresh()
            await sleep(interval if self.state == "ok" else min(FIRST_RETRY, interval))


def _united(known: bytes, new: bytes) -> bytes:
    if not known:
        return new
    size = len(new)
    return (int.from_bytes(known, "little") | int.from_bytes(new, "little")).to_bytes(size, "little")
