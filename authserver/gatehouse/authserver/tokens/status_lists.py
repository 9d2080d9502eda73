"""Status lists: revoking their indices, and publishing them (draft-ietf-oauth-status-list 5.1).

Indices are reserved in blocks, each for one client (reservations.py). Lists are locked after clients, and several lists
in the order of their ids.
"""

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
    MAX_LISTS,
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

    Reserved indices before its first block and after its last one are set: their blocks no longer exist, so their
    tokens have expired or are unknown here, and could not be revoked. Blocks are reserved in the order of their
    indices, and deleted in the order of their age. One that is missing between two others has expired as well. A list
    has tens of thousands of blocks, and only the revoked ones are read.
    """
    bits = bytearray(LIST_SIZE // 8)
    # Read before the blocks, so that later reservations are above it: readers never clear a bit set by mistake.
    reserved = session.scalar(select(StatusListRow.next_index).where(StatusListRow.list_id == list_id)) or 0
    blocks = select(StatusBlockRow.start, StatusBlockRow.size).where(StatusBlockRow.list_id == list_id)
    last = session.execute(blocks.order_by(StatusBlockRow.start.desc()).limit(1)).first()
    first = session.execute(blocks.order_by(StatusBlockRow.start).limit(1)).first()
    if first is None or last is None:
        set_bits(bits, 0, reserved)
    else:
        end = last.start + last.size
        set_bits(bits, 0, first.start)
        set_bits(bits, end, reserved - end)
    for start, size in session.execute(blocks.where(StatusBlockRow.revoked)):
        set_bits(bits, start, size)
    for idx in session.scalars(select(RevokedTokenRow.idx).where(RevokedTokenRow.list_id == list_id)):
        set_bits(bits, idx)
    return bytes(bits)


def close_lists(session: Session) -> None:
    """Reserve no more indices of the existing lists: another installation may have issued tokens with them."""
    session.execute(update(StatusListRow).values(next_index=LIST_SIZE, version=StatusListRow.version + 1))


def list_versions(session: Session) -> dict[str, int]:
    """Return the versions of all lists by their ids, oldest list first."""
    ordered = select(StatusListRow.list_id, StatusListRow.version).order_by(
        StatusListRow.created_at, StatusListRow.list_id
    )
    return dict(session.execute(ordered).all())


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
    """A signed list. Its tag is the same in every process that publishes the same version in the same window."""

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
        signed_lists: int = MAX_LISTS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create the publisher. It keeps `signed_lists` lists in memory."""
        self._database = database
        self._issuer = issuer
        self._clock = clock
        self._versions: LoadingCache[str, int | None] = LoadingCache(
            self._load_version, max_age=MAX_AGE, monotonic=monotonic
        )
        self._all_versions: LoadingCache[None, dict[str, int]] = LoadingCache(
            lambda _: self._load_versions(), max_age=MAX_AGE, monotonic=monotonic
        )
        self._signed: LRUCache[str, PublishedList] = LRUCache(signed_lists)
        self._signing = threading.Lock()

    def etags(self, key: SigningKey, *, wait: bool = True) -> dict[str, str]:
        """Return the entity tag of every list by its URI: a reader fetches a list only if its tag is another one.

        Raises:
            MustWait: without `wait`, if the versions have to be read again.
            SQLAlchemyError: the database is unavailable.
        """
        now = int(self._clock())
        versions = self._all_versions.get(None, wait=wait)
        return {
            list_uri(self._issuer, list_id): _etag(list_id, version, key, now) for list_id, version in versions.items()
        }

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
        etag = _etag(list_id, version, key, now)
        if not self._signing.acquire(blocking=wait):
            raise MustWait
        try:
            signed = self._signed.get(list_id)
            if signed is None or signed.etag != etag:
                if not wait:
                    raise MustWait
                signed = self._signed[list_id] = PublishedList(self._sign(list_id, key, now), etag)
        finally:
            self._signing.release()
        return signed

    def _sign(self, list_id: str, key: SigningKey, now: int) -> bytes:
        # The version was read before the bits: a change in between is signed twice, and never missed.
        with self._database.read() as session:
            bits = load_bits(session, list_id)
        claims = {"sub": list_uri(self._issuer, list_id), "status_list": encode(bits)}
        return key.sign(TYPE, {**claims, "iat": now, "exp": now + LIFETIME, "ttl": POLL_INTERVAL}).encode()

    def _load_version(self, list_id: str) -> int | None:
        with self._database.read() as session:
            return session.scalar(select(StatusListRow.version).where(StatusListRow.list_id == list_id))

    def _load_versions(self) -> dict[str, int]:
        with self._database.read() as session:
            return list_versions(session)


def _etag(list_id: str, version: int, key: SigningKey, now: int) -> str:
    """Return the weak entity tag of a list that is published now.

    It is made of the version and not of the bits: those of expired tokens, whose rows are deleted at any time, are no
    change that a reader needs.
    """
    # Each list has windows of its own, or all lists would have to be signed in the same second.
    window = (now + int(list_id, 16)) // WINDOW
    return f'W/"{version}.{window}.{key.kid[:16]}"'
