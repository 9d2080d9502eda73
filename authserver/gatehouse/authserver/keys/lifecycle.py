"""When a signing key is published, signs, stops signing, and leaves: next, active, retiring, gone.

Nothing here reads a clock or a database: `plan` says what is due, `keys/rotation.py` does it.

Every moment counts from when the key was published, a date that never changes. So a backup that is restored does not
give a key more time than it had, and neither does a restart.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY

KEY_SET_MAX_AGE = 300
"""Seconds that a reader may keep the key set."""

SLACK = 120
"""Seconds by which a move may reach somebody late: other processes cache for a second, requests that have begun are
finished, readers poll, and no two clocks agree. A clock may step back by half of it."""

_BROKEN_CLOCK = 86400
"""Seconds that a date may lie in the future before it is taken for one that a wrong clock wrote."""

State = Literal["next", "active", "retiring"]
"""Published and not signing yet, signing, published and not signing any more. A key that is gone has no row."""


@dataclass(frozen=True, slots=True)
class Key:
    """What is known of a signing key's life. Times are seconds since the epoch."""

    kid: str
    alg: str
    state: State
    published_at: int
    retired_at: int | None = None
    """When it signed last; only of a retiring key."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long keys live. Durations are seconds."""

    alg: str
    """What new keys sign with."""
    period: int
    """How long one key signs before the next takes over."""
    max_age: int = KEY_SET_MAX_AGE
    lifetime: int = MAX_LIFETIME
    """The longest that a token can live."""
    leeway: int = LEEWAY
    """How long a resource server accepts a token after its `exp`."""

    @property
    def lead(self) -> int:
        """How long a key is published before it signs: no copy of the key set without it is fresh any more."""
        return self.max_age + SLACK

    @property
    def tail(self) -> int:
        """How long a key stays published after it signed last: no token of it is accepted any more."""
        return self.lifetime + self.leeway + SLACK

    def signs_at(self, key: Key) -> int:
        """Return when a next key takes over."""
        return key.published_at + self.lead

    def successor_at(self, key: Key) -> int:
        """Return when the key that follows an active one is made, to be ready when it ends."""
        return key.published_at + self.period

    def over_at(self, key: Key) -> int:
        """Return when a key must not sign any more, whatever state the database has it in.

        Usually the next one took over before: this is for a server that was down then, or for a backup.
        """
        return key.published_at + self.lead + self.period + 2 * self.lead

    def gone_at(self, key: Key) -> int:
        """Return when a retiring key leaves the key set."""
        return (key.retired_at or key.published_at) + self.tail


@dataclass(frozen=True, slots=True)
class Move:
    """One step in the life of one key."""

    action: Literal["publish", "activate", "retire", "remove"]
    kid: str | None = None
    """The key; None for one that is yet to be made. To activate that one is to sign with it at once."""


def plan(now: int, keys: Sequence[Key], policy: Policy) -> tuple[Move, ...]:
    """Return the moves that are due, in the order in which they have to be made. After them, one key is active.

    `keys` holds at most one active key. It may come from a backup of any age, and `now` may be any time after it.
    """
    leaving = [move for key in keys if (move := _leave(now, key, policy)) is not None]
    going = {move.kid for move in leaving}
    staying = [key for key in keys if key.kid not in going]
    active = next((key for key in staying if key.state == "active"), None)
    waiting = sorted((key for key in staying if key.state == "next"), key=lambda key: (key.published_at, key.kid))
    if active is None:
        # A key that is published already has reached more readers than a new one.
        return (*leaving, Move("activate", waiting[0].kid if waiting else None))
    if waiting and now >= policy.signs_at(waiting[0]):
        return (*leaving, Move("retire", active.kid), Move("activate", waiting[0].kid))
    if not waiting and _is_to_be_followed(now, active, policy):
        return (*leaving, Move("publish"))
    return tuple(leaving)


def signer(now: int, keys: Sequence[Key], policy: Policy) -> Key | None:
    """Return the key that may sign now, or None while the moves that are due have not been made."""
    return next((key for key in keys if key.state == "active" and now < policy.over_at(key)), None)


def _leave(now: int, key: Key, policy: Policy) -> Move | None:
    """Return how a key leaves the state that it is in, if its time there is over.

    A next key that is over may have signed in the life that a backup knows nothing of: it stays published for as long
    as one that did.
    """
    if key.state == "retiring":
        if now >= policy.gone_at(key):
            return Move("remove", key.kid)
        return Move("retire", key.kid) if _is_of_a_broken_clock(now, key.retired_at) else None
    if now >= policy.over_at(key):
        return Move("retire", key.kid)
    if key.state == "next" and _is_of_a_broken_clock(now, key.published_at):
        return Move("retire", key.kid)
    return None


def _is_to_be_followed(now: int, active: Key, policy: Policy) -> bool:
    return (
        now >= policy.successor_at(active)
        or active.alg != policy.alg
        or _is_of_a_broken_clock(now, active.published_at)
    )


def _is_of_a_broken_clock(now: int, date: int | None) -> bool:
    return date is not None and date > now + _BROKEN_CLOCK
