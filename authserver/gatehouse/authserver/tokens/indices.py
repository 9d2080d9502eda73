"""The index of a token in its status list: taken from a block in memory, so that issuing does not write."""

import re
import secrets
import threading
from collections import OrderedDict
from dataclasses import dataclass, field

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.status_lists import MAX_BLOCK, Block, prune_status_lists, reserve_block
from gatehouse.authserver.errors import invalid_client
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.service.remediation import client_command

MIN_BLOCK = 16
"""Indices of a client's first block. Each further one that is used up is followed by one of twice the size."""

_HELD = 65_536
"""Clients whose blocks are held. What is pushed out is not used."""

_JTI = re.compile(r"([0-9a-f]{12})\.(0|[1-9][0-9]{0,5})\.[A-Za-z0-9_-]{22}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Index:
    """One bit of one list."""

    list_id: str
    idx: int

    def new_jti(self) -> str:
        """Return a `jti` that carries the index, so that a token can be revoked by its `jti` alone."""
        return f"{self.list_id}.{self.idx}.{secrets.token_urlsafe(16)}"


def parse_jti(jti: str) -> Index | None:
    """Return the index that a `jti` carries; None for one that was not made here."""
    match = _JTI.fullmatch(jti)
    return Index(match[1], int(match[2])) if match else None


@dataclass(slots=True)
class _Holder:
    lock: threading.Lock = field(default_factory=threading.Lock)
    block: Block | None = None
    used: int = 0

    def take(self, epoch: int, now: float) -> Index | None:
        """Return the next index, unless the block is used up, too old, or void because the client was disabled."""
        block = self.block
        if block is None or block.epoch < epoch or now >= block.usable_until or self.used >= block.size:
            return None
        self.used += 1
        return Index(block.list_id, block.start + self.used - 1)

    def next_size(self) -> int:
        """Return how many indices to reserve: more for a client that used its block up."""
        used_up = self.block is not None and self.used >= self.block.size
        return min(2 * self.used, MAX_BLOCK) if used_up else MIN_BLOCK


class StatusIndices:
    """The blocks of one process."""

    def __init__(self, database: Database, clock: Clock, *, held: int = _HELD) -> None:
        self._database = database
        self._clock = clock
        self._held = held
        self._holders: OrderedDict[str, _Holder] = OrderedDict()
        self._lock = threading.Lock()

    def take(self, client: Client) -> Index:
        """Return an index for a new token of a client.

        Raises:
            OAuthError: `invalid_client`: it was disabled or deleted since it authenticated.
            SQLAlchemyError: no block is left, and none can be reserved.
        """
        holder = self._holder(client.client_id)
        # Of all who wait here one reserves; the others take from its block.
        with holder.lock:
            now = self._clock()
            index = holder.take(client.token_epoch, now)
            if index is not None:
                return index
            with self._database.write() as session:
                block = reserve_block(session, client.client_id, holder.next_size(), int(now))
            if block is None:
                raise invalid_client(
                    "client was disabled since it authenticated", client_command("enable", client.client_id)
                )
            holder.block, holder.used = block, 1
            return Index(block.list_id, block.start)

    def prune(self) -> None:
        """Forget what belongs to expired tokens, and the lists whose last token expired."""
        with self._database.write() as session:
            prune_status_lists(session, int(self._clock()))

    def _holder(self, client_id: str) -> _Holder:
        with self._lock:
            holder = self._holders.setdefault(client_id, _Holder())
            self._holders.move_to_end(client_id)
            if len(self._holders) > self._held:
                self._holders.popitem(last=False)
            return holder
