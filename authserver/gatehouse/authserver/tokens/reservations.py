"""Reserves indices of status lists in blocks, each for one client.

Reserving and revoking both lock the client's row: so either the block exists when the client's tokens are revoked, or
the reservation sees that the client is disabled. A list is locked after clients, and only one at a time.
"""

import secrets
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, Row, bindparam, insert, select, update
from sqlalchemy.orm import Session

from gatehouse.authserver.db.group_commit import Later
from gatehouse.authserver.db.models import ClientRow, StatusBlockRow, StatusListRow
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.status_list import LIST_SIZE

MAX_BLOCK = 1024
"""The largest number of indices that are reserved for a client at once. A list has room for MAX_GROUP such blocks."""

BLOCK_LIFETIME = 3600
"""Seconds in which tokens may be issued from a block. Indices that remain are not used."""

SPARE = LIST_SIZE // 8
"""When fewer indices than this remain, the next list is created, so that readers know it before its first token."""

# Building a statement takes longer than executing it.
_CLIENTS = (
    select(ClientRow.client_id, ClientRow.disabled, ClientRow.token_epoch)
    .where(ClientRow.client_id.in_(bindparam("client_ids", expanding=True)))
    .order_by(ClientRow.client_id)
)
_LOCK_CLIENTS = _CLIENTS.with_for_update()
_LOCK_FREE_CLIENTS = _CLIENTS.with_for_update(skip_locked=True)
_FULLEST_LIST = (
    select(StatusListRow.list_id, StatusListRow.next_index, StatusListRow.expires_at)
    .where(StatusListRow.next_index <= bindparam("last_index"))
    .order_by(StatusListRow.next_index.desc(), StatusListRow.list_id)
    .limit(1)
)
_LOCK_LIST = _FULLEST_LIST.with_for_update()
_USE_LIST = (
    update(StatusListRow)
    .where(StatusListRow.list_id == bindparam("used_list"))
    .values(next_index=bindparam("new_index"), expires_at=bindparam("new_expiry"))
)
_ADD_BLOCKS = insert(StatusBlockRow)


@dataclass(frozen=True, slots=True)
class Reservation:
    """A request for indices. `now` is in seconds since the epoch."""

    client_id: str
    size: int
    now: int

    @property
    def usable_until(self) -> int:
        """When tokens can no longer be issued with the indices."""
        return self.now + BLOCK_LIFETIME

    @property
    def expires_at(self) -> int:
        """When the last of these tokens has expired on every node."""
        return self.usable_until + MAX_LIFETIME + 2 * LEEWAY


@dataclass(frozen=True, slots=True)
class Block:
    """Indices of one list that are reserved for one client, in one epoch of the client's tokens."""

    list_id: str
    start: int
    size: int
    epoch: int
    usable_until: int


def reserve_block(session: Session, client_id: str, size: int, now: int) -> Block | None:
    """Reserve indices for a client. Return None if the client is unknown or disabled. Waits for the client's row."""
    connection = session.connection()
    epoch = _lock_clients(connection, {client_id}).get(client_id)
    return None if epoch is None else _reserve(connection, [(Reservation(client_id, size, now), epoch)])[0]


def reserve_blocks(connection: Connection, wanted: Sequence[Reservation]) -> list[Block | Later | None]:
    """Reserve indices for at most MAX_GROUP clients. The result is None for a client that is unknown or disabled.

    The result is LOCKED for a client whose row another transaction has locked: while an admin changes one client, the
    others do not wait.
    """
    client_ids = {reservation.client_id for reservation in wanted}
    epochs = _lock_clients(connection, client_ids, skip_locked=True)
    results: dict[str, Later | None] = dict.fromkeys(_existing(connection, client_ids - epochs.keys()), Later.LOCKED)
    granted = [(one, epoch) for one in wanted if (epoch := epochs.get(one.client_id)) is not None]
    blocks = iter(_reserve(connection, granted))
    return [next(blocks) if epochs.get(one.client_id) is not None else results.get(one.client_id) for one in wanted]


def ensure_list(connection: Connection, now: int, room: int = SPARE) -> None:
    """Create a list if none has room for that many indices."""
    if connection.scalar(_FULLEST_LIST, {"last_index": LIST_SIZE - room}) is None:
        row = {"list_id": secrets.token_hex(6), "next_index": 0, "version": 0, "created_at": now, "expires_at": now}
        connection.execute(insert(StatusListRow), row)


def _lock_clients(
    connection: Connection, client_ids: Collection[str], *, skip_locked: bool = False
) -> dict[str, int | None]:
    """Lock clients in the order of all transactions. Return the epoch of each, None if it is disabled."""
    rows = connection.execute(_LOCK_FREE_CLIENTS if skip_locked else _LOCK_CLIENTS, {"client_ids": list(client_ids)})
    return {client_id: None if disabled else epoch for client_id, disabled, epoch in rows}


def _existing(connection: Connection, client_ids: Collection[str]) -> Collection[str]:
    if not client_ids:
        return ()
    return connection.scalars(_CLIENTS, {"client_ids": list(client_ids)}).all()


def _reserve(connection: Connection, granted: Sequence[tuple[Reservation, int]]) -> list[Block]:
    """Reserve indices of one list for locked clients, each with the epoch of its tokens."""
    if not granted:
        return []
    size, now = sum(wanted.size for wanted, _ in granted), granted[0][0].now
    found = _lock_list(connection, size)
    if found is None:
        ensure_list(connection, now, max(size, SPARE))
        found = _lock_list(connection, size)
    assert found is not None  # noqa: S101 - a list with room was found, or created in this transaction
    list_id, end, expires_at = found
    blocks, rows = [], []
    for wanted, epoch in granted:
        blocks.append(Block(list_id, end, wanted.size, epoch, wanted.usable_until))
        rows.append(
            {
                "list_id": list_id,
                "start": end,
                "size": wanted.size,
                "client_id": wanted.client_id,
                "revoked": False,
                "expires_at": wanted.expires_at,
            }
        )
        end += wanted.size
        expires_at = max(expires_at, wanted.expires_at)
    connection.execute(_USE_LIST, {"used_list": list_id, "new_index": end, "new_expiry": expires_at})
    connection.execute(_ADD_BLOCKS, rows)
    if end > LIST_SIZE - SPARE:
        ensure_list(connection, now)
    return blocks


def _lock_list(connection: Connection, size: int) -> Row[str, int, int] | None:
    """Lock the fullest list with room, and return its id, its first free index and its expiry."""
    return connection.execute(_LOCK_LIST, {"last_index": LIST_SIZE - size}).first()
