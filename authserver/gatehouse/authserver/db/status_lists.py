"""Which index of which status list belongs to whom, and which are set.

Indices are reserved in blocks, each for one client. Who reserves or revokes for a client holds the lock of its row, so
that of the two either the block is there to be revoked, or the client is seen disabled. Lists are locked after clients,
and several lists in the order of their ids.
"""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, delete, select, update
from sqlalchemy.orm import Session

from gatehouse.authserver.db.models import ClientRow, RevokedTokenRow, StatusBlockRow, StatusListRow
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.status_list import LIST_SIZE, set_bits

MAX_BLOCK = 1024
"""Indices that are reserved at once, at most."""

BLOCK_LIFETIME = 3600
"""Seconds in which tokens may be issued from a block. What is left then is not used."""

_SPARE = LIST_SIZE // 8
"""With fewer indices left than this, the next list is made: resource servers are to know it before its first token."""


@dataclass(frozen=True, slots=True)
class Block:
    """Indices of one list that are one client's, as they were reserved in an epoch of the client's tokens."""

    list_id: str
    start: int
    size: int
    epoch: int
    usable_until: int


def ensure_list(session: Session, now: int) -> None:
    """Make a list if there is none with room to spare."""
    if session.scalars(select(StatusListRow.list_id).where(_room_for(_SPARE))).first() is None:
        session.add(
            StatusListRow(list_id=secrets.token_hex(6), next_index=0, version=0, created_at=now, expires_at=now)
        )
        session.flush()


def reserve_block(session: Session, client_id: str, size: int, now: int) -> Block | None:
    """Reserve indices for a client. Return None for a client that is unknown or disabled."""
    client = session.get(ClientRow, client_id, with_for_update=True, populate_existing=True)
    if client is None or client.disabled:
        return None
    found = _lock_list(session, size)
    if found is None:
        ensure_list(session, now)
        found = _lock_list(session, size)
    assert found is not None  # noqa: S101 - a list with room was found, or made in this transaction
    start, usable_until = found.next_index, now + BLOCK_LIFETIME
    expires_at = usable_until + MAX_LIFETIME + 2 * LEEWAY
    found.next_index += size
    found.expires_at = max(found.expires_at, expires_at)
    session.add(
        StatusBlockRow(
            list_id=found.list_id, start=start, size=size, client_id=client_id, revoked=False, expires_at=expires_at
        )
    )
    session.flush()
    ensure_list(session, now)
    return Block(found.list_id, start, size, client.token_epoch, usable_until)


def _room_for(size: int) -> ColumnElement[bool]:
    return StatusListRow.next_index <= LIST_SIZE - size


def _lock_list(session: Session, size: int) -> StatusListRow | None:
    fullest_first = (StatusListRow.next_index.desc(), StatusListRow.list_id)
    return session.scalars(
        select(StatusListRow)
        .where(_room_for(size))
        .order_by(*fullest_first)
        .limit(1)
        .with_for_update()
        .execution_options(populate_existing=True)
    ).first()


def revoke_client(session: Session, client_id: str) -> None:
    """Set every bit of a client, and make the blocks void that are held for it.

    The caller holds the lock of the client's row, or has deleted it.
    """
    session.execute(
        update(ClientRow).where(ClientRow.client_id == client_id).values(token_epoch=ClientRow.token_epoch + 1)
    )
    of_client = and_(StatusBlockRow.client_id == client_id, StatusBlockRow.revoked.is_(False))
    _change(session, session.scalars(select(StatusBlockRow.list_id).where(of_client).distinct()).all())
    session.execute(update(StatusBlockRow).where(of_client).values(revoked=True))


def revoke_token(session: Session, list_id: str, idx: int) -> str | None:
    """Set the bit of one token. Return whose it was, or None when no client has that index."""
    block = find_block(session, list_id, idx)
    if block is None:
        return None
    _change(session, [list_id])
    if session.get(RevokedTokenRow, (list_id, idx)) is None:
        session.add(RevokedTokenRow(list_id=list_id, idx=idx, expires_at=block.expires_at))
        session.flush()
    return block.client_id


def _change(session: Session, lists: Sequence[str]) -> None:
    """Lock lists, and have them signed anew."""
    ordered = select(StatusListRow.list_id).where(StatusListRow.list_id.in_(lists)).order_by(StatusListRow.list_id)
    locked = session.scalars(ordered.with_for_update()).all()
    session.execute(
        update(StatusListRow).where(StatusListRow.list_id.in_(locked)).values(version=StatusListRow.version + 1)
    )


def find_block(session: Session, list_id: str, idx: int) -> StatusBlockRow | None:
    """Return the block that an index is in."""
    within = and_(StatusBlockRow.start <= idx, StatusBlockRow.start + StatusBlockRow.size > idx)
    return session.scalars(select(StatusBlockRow).where(StatusBlockRow.list_id == list_id, within)).first()


def is_live(session: Session, list_id: str, idx: int) -> bool:
    """Tell whether an index was reserved and is not set. The queries are the same whatever the answer."""
    block = find_block(session, list_id, idx)
    revoked = session.scalar(
        select(RevokedTokenRow.idx).where(RevokedTokenRow.list_id == list_id, RevokedTokenRow.idx == idx)
    )
    return block is not None and not block.revoked and revoked is None


def version_of(session: Session, list_id: str) -> int | None:
    """Return how often a list changed; None for one that there is not."""
    return session.scalar(select(StatusListRow.version).where(StatusListRow.list_id == list_id))


def load_bits(session: Session, list_id: str) -> bytes:
    """Return every bit of a list.

    Indices that were reserved, and whose block is gone, are set: their tokens have expired, or should have, or are
    unknown here. Nobody could take them back.
    """
    bits = bytearray(LIST_SIZE // 8)
    # Read before the blocks: what is reserved meanwhile is above it. A bit that is set by mistake stays set at readers.
    reserved = session.scalar(select(StatusListRow.next_index).where(StatusListRow.list_id == list_id)) or 0
    blocks = select(StatusBlockRow.start, StatusBlockRow.size, StatusBlockRow.revoked)
    known = 0
    for start, size, revoked in session.execute(
        blocks.where(StatusBlockRow.list_id == list_id).order_by(StatusBlockRow.start)
    ):
        set_bits(bits, known, start - known)
        if revoked:
            set_bits(bits, start, size)
        known = max(known, start + size)
    set_bits(bits, known, reserved - known)
    for idx in session.scalars(select(RevokedTokenRow.idx).where(RevokedTokenRow.list_id == list_id)):
        set_bits(bits, idx)
    return bytes(bits)


def close_lists(session: Session) -> None:
    """Let no index of the present lists be reserved: somewhere else, it may have been."""
    session.execute(update(StatusListRow).values(next_index=LIST_SIZE))


def list_ids(session: Session) -> list[str]:
    """Return the ids of all lists, the oldest first."""
    return list(
        session.scalars(select(StatusListRow.list_id).order_by(StatusListRow.created_at, StatusListRow.list_id))
    )


def prune_status_lists(session: Session, now: int) -> None:
    """Remove what belongs to expired tokens, and the lists whose last token expired. Lists with room to spare stay."""
    session.execute(delete(RevokedTokenRow).where(RevokedTokenRow.expires_at < now))
    session.execute(delete(StatusBlockRow).where(StatusBlockRow.expires_at < now))
    session.execute(
        delete(StatusListRow).where(StatusListRow.expires_at < now, StatusListRow.next_index > LIST_SIZE - _SPARE)
    )
