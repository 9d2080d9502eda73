"""Status lists as they are published (draft-ietf-oauth-status-list 5.1): signed once for each change."""

import hashlib
import json
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.status_lists import list_ids, load_bits, version_of
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import LIFETIME, LIST_ID, POLL_INTERVAL, TYPE, WINDOW, encode, list_uri
from gatehouse.shared.service.cache import LoadingCache

MAX_AGE = 0.25
"""Seconds after which it is asked again whether a list has changed."""

_KEPT = 1024
"""Signed lists that are kept in memory."""


@dataclass(frozen=True, slots=True)
class PublishedList:
    """A signed list. The tag is the same in every process that publishes the same bits in the same window."""

    token: bytes
    etag: str


class StatusListPublisher:
    """Signs the lists of one issuer."""

    def __init__(
        self, database: Database, issuer: str, clock: Clock, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._versions: LoadingCache[str, int | None] = LoadingCache(
            self._load_version, max_age=MAX_AGE, monotonic=monotonic
        )
        self._ids: LoadingCache[None, list[str]] = LoadingCache(
            lambda _: self._load_ids(), max_age=MAX_AGE, monotonic=monotonic
        )
        self._signed: OrderedDict[str, tuple[tuple[int, str, int], PublishedList]] = OrderedDict()
        self._signing = threading.Lock()

    def uris(self) -> list[str]:
        """Return the URI of every list. Raises SQLAlchemyError."""
        return [list_uri(self._issuer, list_id) for list_id in self._ids.get(None)]

    def find(self, list_id: str, key: SigningKey) -> PublishedList | None:
        """Return a list, signed; None if there is none of that id.

        Raises:
            SQLAlchemyError: the database is away. What was signed before is not served on: nobody knows what has
                changed since, and a resource server decides by itself for how long it goes on without word.
        """
        # A path may hold what no database takes, and need not be remembered.
        version = self._versions.get(list_id) if LIST_ID.fullmatch(list_id) else None
        if version is None:
            return None
        now = int(self._clock())
        state = (version, key.kid, now // WINDOW)
        with self._signing:
            signed = self._signed.get(list_id)
            if signed is None or signed[0] != state:
                signed = self._signed[list_id] = (state, self._sign(list_id, key, now))
                self._signed.move_to_end(list_id)
                if len(self._signed) > _KEPT:
                    self._signed.popitem(last=False)
        return signed[1]

    def _sign(self, list_id: str, key: SigningKey, now: int) -> PublishedList:
        # The version was read before the bits: what changes in between is signed twice, and never missed.
        with self._database.read() as session:
            bits = load_bits(session, list_id)
        claims = {"sub": list_uri(self._issuer, list_id), "status_list": encode(bits)}
        same = json.dumps([claims, key.kid, now // WINDOW]).encode()
        token = key.sign(TYPE, {**claims, "iat": now, "exp": now + LIFETIME, "ttl": POLL_INTERVAL})
        return PublishedList(token.encode(), f'W/"{hashlib.sha256(same).hexdigest()[:32]}"')

    def _load_version(self, list_id: str) -> int | None:
        with self._database.read() as session:
            return version_of(session, list_id)

    def _load_ids(self) -> list[str]:
        with self._database.read() as session:
            return list_ids(session)
