"""Issues access tokens (RFC 9068), each with a status list index of its own.

Each process keeps a block of indices in memory for each client, so that issuing a token usually writes nothing to the
database. The `jti` of a token contains its index.
"""

import asyncio
import re
import secrets
from dataclasses import dataclass, field

from cachetools import LRUCache

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.group_commit import GroupCommit
from gatehouse.authserver.errors import AuthFailure, OAuthError, invalid_client
from gatehouse.authserver.grants.client_credentials import GrantedRequest
from gatehouse.authserver.tokens.reservations import MAX_BLOCK, Block, Reservation, reserve_blocks
from gatehouse.authserver.tokens.status_lists import prune_status_lists
from gatehouse.shared.protocol.claims import (
    ACCESS_TOKEN_TYPE,
    MAX_LIFETIME,
    MAX_TOKEN_LENGTH,
    AccessClaims,
    StatusReference,
)
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.status_list import list_uri
from gatehouse.shared.service.deadline import before_deadline
from gatehouse.shared.service.remediation import client_command

MIN_BLOCK = 4
"""Indices of a client's first block. When a block is used up, the next one has twice its size.

A client with few tokens needs no more from each process, and unused indices add to the number of lists (docs/scale.md).
"""

CACHED_CLIENTS = 65_536
"""Clients whose blocks are kept in memory. The rest of an evicted block is not used."""

_JTI = re.compile(r"([0-9a-f]{12})\.(0|[1-9][0-9]{0,5})\.[A-Za-z0-9_-]{22}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Index:
    """The index of one bit in one status list (draft-ietf-oauth-status-list 4)."""

    list_id: str
    idx: int

    def new_jti(self) -> str:
        """Return a `jti` that contains the index, so that a token can be revoked by its `jti` alone."""
        return f"{self.list_id}.{self.idx}.{secrets.token_urlsafe(16)}"


def parse_jti(jti: str) -> Index | None:
    """Return the index in a `jti`, or None if this server did not generate it."""
    match = _JTI.fullmatch(jti)
    return Index(match[1], int(match[2])) if match else None


@dataclass(slots=True)
class _ClientBlock:
    block: Block | None = None
    used: int = 0
    reserving: "asyncio.Task[Block | None] | None" = None
    """Reserves the next block. None if there is no reservation, or as soon as it has ended."""

    def next_index(self, epoch: int, now: float) -> Index | None:
        """Return the next index, or None if the block is used up, too old, or void because the client was disabled."""
        block = self.block
        if block is None or block.epoch < epoch or now >= block.usable_until or self.used >= block.size:
            return None
        self.used += 1
        return Index(block.list_id, block.start + self.used - 1)

    def next_size(self) -> int:
        """Return how many indices to reserve: more for a client that used its block up."""
        used_up = self.block is not None and self.used >= self.block.size
        return min(2 * self.used, MAX_BLOCK) if used_up else MIN_BLOCK


class StatusIndexAllocator:
    """Allocates indices from the blocks of one process. For use on its event loop only."""

    def __init__(self, database: Database, clock: Clock, *, clients: int = CACHED_CLIENTS) -> None:
        self._database = database
        self._clock = clock
        self._blocks: LRUCache[str, _ClientBlock] = LRUCache(clients)
        self._group = GroupCommit(database, reserve_blocks, name="reservations")

    async def allocate(self, client: Client, now: float) -> Index:
        """Return an index for a token of a client that is issued now. `now` is seconds since the epoch.

        Raises:
            OAuthError: `invalid_client`: the client was disabled or deleted since it authenticated.
            DeadlineExceeded, SQLAlchemyError: no index is left, and none can be reserved.
        """
        held = self._blocks.get(client.client_id)
        if held is None:
            held = self._blocks[client.client_id] = _ClientBlock()
        index = held.next_index(client.token_epoch, now)
        while index is None:
            block = await self._reserve(held, client, now)
            # The client as it was when the block was reserved, which is newer than the cached one.
            index = held.next_index(block.epoch, now)
        return index

    async def _reserve(self, held: _ClientBlock, client: Client, now: float) -> Block:
        """Reserve the next block of a client, or wait for another request that does. Raises as `allocate`."""
        if held.reserving is None:
            reservation = Reservation(client.client_id, held.next_size(), int(now))
            held.reserving = asyncio.create_task(self._replace_block(held, reservation))
            # All requests may have given up. The error would then be logged as one that nobody handled.
            held.reserving.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        # Other requests may wait for the same block.
        block = await before_deadline(asyncio.shield(held.reserving))
        if block is None:
            remediation = client_command("enable", client.client_id)
            raise invalid_client(AuthFailure.DISABLED_CLIENT, "client was disabled since it authenticated", remediation)
        return block

    async def _replace_block(self, held: _ClientBlock, reservation: Reservation) -> Block | None:
        """Reserve the next block of a client, and replace the present one before any waiting request continues."""
        try:
            block = await self._group.submit(reservation)
            if block is not None:
                held.block, held.used = block, 0
            return block
        finally:
            held.reserving = None

    def close(self) -> None:
        """Write what requests wait for, and stop."""
        self._group.close()

    def prune(self) -> None:
        """Delete the rows of expired tokens, and the lists whose last token expired."""
        with self._database.write() as session:
            prune_status_lists(session, int(self._clock()))


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """A signed token and its claims."""

    access_token: str = field(repr=False)
    claims: AccessClaims
    scope: str
    """The `scope` claim as text."""
    kid: str
    """The key that signed the token."""


@dataclass(frozen=True, slots=True)
class TokenIssuer:
    """Issues the tokens of one issuer. Pure: no I/O."""

    issuer: str
    default_ttl: int
    """Seconds; for clients without a TTL of their own."""

    def issue(self, granted: GrantedRequest, index: Index, key: SigningKey, now: float) -> IssuedToken:
        """Sign a token for a granted request, with a status list index that no other token has.

        `now` is seconds since the epoch.

        Raises:
            OAuthError: `invalid_scope` if the token would be longer than a resource server accepts.
        """
        client = granted.client
        issued_at = int(now)
        claims = AccessClaims(
            iss=self.issuer,
            sub=client.client_id,
            client_id=client.client_id,
            aud=granted.resource,
            iat=issued_at,
            exp=issued_at + min(client.token_ttl or self.default_ttl, MAX_LIFETIME),
            jti=index.new_jti(),
            scope=granted.scope,
            static=client.claims,
            status=StatusReference(list_uri(self.issuer, index.list_id), index.idx),
        )
        payload = claims.to_json()
        token = key.sign(ACCESS_TOKEN_TYPE, payload)
        if len(token) > MAX_TOKEN_LENGTH:
            raise OAuthError("invalid_scope", "These scopes do not fit into one token. Request fewer.")
        return IssuedToken(token, claims, payload["scope"], key.kid)
