"""Status lists: revoking their indices, and publishing them (draft-ietf-oauth-status-list 5.1).

Indices are reserved in blocks, each for one client (reservations.py). Lists are locked after clients, and several lists
in the order of their ids.
"""

import hashlib
import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cachetools import LRUCache
from sqlalchemy import and_, delete, exists, select, tuple_, update
from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import ClientRow, RevokedTokenRow, StatusBlockRow, StatusListRow
from gatehouse.authserver.tokens.reservations import SPARE
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import (
    LIFETIME,
    LIST_ID,
    LIST_SIZE,
    POLL_INTERVAL,
    TYPE,
    WINDOW,
    encode,
    list_uri,
    set_bits,
)
from gatehouse.shared.service.cache import LoadingCache, MustWait

MAX_AGE = 0.25
"""Seconds after which the publisher checks again whether a list has changed."""

_SIGNED_LISTS = 1024
"""Signed lists that are kept in memory."""

_UNSYNCHRONIZED = {"synchronize_session": False}
"""The session of a deletion holds none of the rows."""


def revoke_client(session: Session, client_id: str) -> None:
    """Set every bit of a client, and invalidate the blocks that processes hold for it.

    The caller holds the lock of the client's row, or has deleted it.
    """
    session.execute(
        update(ClientRow).where(ClientRow.client_id == client_id).values(token_epoch=ClientRow.token_epoch + 1)
    )
    of_client = and_(StatusBlockRow.client_id == client_id, StatusBlockRow.revoked.is_(False))
    _mark_changed(session, session.scalars(select(StatusBlockRow.list_id).where(of_client).distinct()).all())
    session.execute(update(StatusBlockRow).where(of_client).values(revoked=True))


def revoke_token(session: Session, list_id: str, idx: int) -> str | None:
    """Set the bit of one token. Return its client's id, or None if the index is not reserved."""
    block = find_block(session, list_id, idx)
    if block is None:
        return None
    if not _mark_changed(session, [list_id]):
        # The list was deleted since, because all its tokens have expired.
        return None
    if session.get(RevokedTokenRow, (list_id, idx)) is None:
        session.add(RevokedTokenRow(list_id=list_id, idx=idx, expires_at=block.expires_at))
        session.flush()
    return block.client_id


def _mark_changed(session: Session, lists: Sequence[str]) -> Sequence[str]:
    """Lock lists, and increment their versions so that they are signed again. Return those that still exist."""
    ordered = select(StatusListRow.list_id).where(StatusListRow.list_id.in_(lists)).order_by(StatusListRow.list_id)
    locked = session.scalars(ordered.with_for_update()).all()
    session.execute(
        update(StatusListRow).where(StatusListRow.list_id.in_(locked)).values(version=StatusListRow.version + 1)
    )
    return locked


def find_block(session: Session, list_id: str, idx: int) -> StatusBlockRow | None:
    """Return the block that an index belongs to."""
    within = and_(StatusBlockRow.start <= idx, StatusBlockRow.start + StatusBlockRow.size > idx)
    return session.scalars(select(StatusBlockRow).where(StatusBlockRow.list_id == list_id, within)).first()


def is_active(session: Session, list_id: str, idx: int) -> bool:
    """Tell whether an index is reserved and not revoked. The queries are the same whatever the answer."""
    block = find_block(session, list_id, idx)
    revoked = session.scalar(
        select(RevokedTokenRow.idx).where(RevokedTokenRow.list_id == list_id, RevokedTokenRow.idx == idx)
    )
    return block is not None and not block.revoked and revoked is None


def load_bits(session: Session, list_id: str) -> bytes:
    """Return every bit of a list.

    Reserved indices whose block no longer exists are set: their tokens have expired or are unknown here, and could not
    be revoked.
    """
    bits = bytearray(LIST_SIZE // 8)
    # Read before the blocks, so that later reservations are above it: readers never clear a bit set by mistake.
    reserved = session.scalar(select(StatusListRow.next_index).where(StatusListRow.list_id == list_id)) or 0
    blocks = select(StatusBlockRow.start, StatusBlockRow.size, StatusBlockRow.revoked)
    known = 0
    for start, size, revoked in session.execute(
        blocks.where(StatusBlockRow.list_id == list_id).order_by(StatusBlockRow.start)
    ):
        if start > known:
            set_bits(bits, known, start - known)
        if revoked:
            set_bits(bits, start, size)
        known = max(known, start + size)
    set_bits(bits, known, reserved - known)
    for idx in session.scalars(select(RevokedTokenRow.idx).where(RevokedTokenRow.list_id == list_id)):
        set_bits(bits, idx)
    return bytes(bits)


def close_lists(session: Session) -> None:
    """Reserve no more indices of the existing lists: another installation may have issued tokens with them."""
    session.execute(update(StatusListRow).values(next_index=LIST_SIZE))


def list_ids(session: Session) -> list[str]:
    """Return the ids of all lists, oldest first."""
    return list(
        session.scalars(select(StatusListRow.list_id).order_by(StatusListRow.created_at, StatusListRow.list_id))
    )


def prune_status_lists(session: Session, now: int) -> None:
    """Delete the rows of expired tokens, and lists whose last token expired. Lists with enough free indices stay.

    Rows that another transaction has locked stay until the next time. So this transaction waits for no other, and no
    two can wait for each other, whatever the order in which they lock.
    """
    for row in (RevokedTokenRow, StatusBlockRow):
        key = tuple(row.__table__.primary_key)
        expired = select(*key).where(row.expires_at < now).with_for_update(skip_locked=True)
        session.execute(delete(row).where(tuple_(*key).in_(expired)), execution_options=_UNSYNCHRONIZED)
    ended = (
        select(StatusListRow.list_id)
        .where(
            StatusListRow.expires_at < now,
            StatusListRow.next_index > LIST_SIZE - SPARE,
            # To delete a list deletes its rows, and would wait for those that are locked.
            *(~exists().where(row.list_id == StatusListRow.list_id) for row in (RevokedTokenRow, StatusBlockRow)),
        )
        .with_for_update(skip_locked=True)
    )
    session.execute(delete(StatusListRow).where(StatusListRow.list_id.in_(ended)), execution_options=_UNSYNCHRONIZED)


@dataclass(frozen=True, slots=True)
class PublishedList:
    """A signed list. Its tag is the same in every process that publishes the same bits in the same window."""

    token: bytes
    etag: str


class StatusListPublisher:
    """Signs the lists of one issuer, once for each change and window."""

    def __init__(
        self,
        database: Database,
        issuer: str,
        clock: Clock,
        *,
        signed_lists: int = _SIGNED_LISTS,
        monotonic: Callable[[], float] = time.monotonic,
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
        self._signed: LRUCache[str, tuple[tuple[int, str, int], PublishedList]] = LRUCache(signed_lists)
        self._signing = threading.Lock()

    def uris(self, *, wait: bool = True) -> list[str]:
        """Return the URI of every list. Raises SQLAlchemyError, and MustWait without `wait` if they are not cached."""
        return [list_uri(self._issuer, list_id) for list_id in self._ids.get(None, wait=wait)]

    def find(self, list_id: str, key: SigningKey, *, wait: bool = True) -> PublishedList | None:
        """Return a signed list, or None if there is none with that id.

        Raises:
            MustWait: without `wait`, if the version of the list has to be read again, or the list to be signed.
            SQLAlchemyError: the database is unavailable. An older signed list is not served then, because it may have
                changed, and a resource server itself decides how long it continues without an update.
        """
        # A path may contain text that the database rejects, and must not fill the cache.
        version = self._versions.get(list_id, wait=wait) if LIST_ID.fullmatch(list_id) else None
        if version is None:
            return None
        now = int(self._clock())
        state = (version, key.kid, now // WINDOW)
        if not self._signing.acquire(blocking=wait):
            raise MustWait
        try:
            signed = self._signed.get(list_id)
            if signed is None or signed[0] != state:
                if not wait:
                    raise MustWait
                signed = self._signed[list_id] = (state, self._sign(list_id, key, now))
        finally:
            self._signing.release()
        return signed[1]

    def _sign(self, list_id: str, key: SigningKey, now: int) -> PublishedList:
        # The version was read before the bits: a change in between is signed twice, and never missed.
        with self._database.read() as session:
            bits = load_bits(session, list_id)
        claims = {"sub": list_uri(self._issuer, list_id), "status_list": encode(bits)}
        tagged = json.dumps([claims, key.kid, now // WINDOW]).encode()
        token = key.sign(TYPE, {**claims, "iat": now, "exp": now + LIFETIME, "ttl": POLL_INTERVAL})
        return PublishedList(token.encode(), f'W/"{hashlib.sha256(tagged).hexdigest()[:32]}"')

    def _load_version(self, list_id: str) -> int | None:
        with self._database.read() as session:
            return session.scalar(select(StatusListRow.version).where(StatusListRow.list_id == list_id))

    def _load_ids(self) -> list[str]:
        with self._database.read() as session:
            return list_ids(session)
