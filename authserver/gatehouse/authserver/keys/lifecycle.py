"""The lifecycle of a signing key: next (published), active (signs), retiring (published), removed.

Nothing here reads a clock or a database: `plan` returns the transitions that are due, `keys/rotation.py` applies them.

Every time counts from when the key was published, which never changes. So neither a restored backup nor a restart
gives a key more time than it had.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY

KEY_SET_MAX_AGE = 300
"""Seconds that a reader may cache the key set."""

SLACK = 120
"""Seconds by which a transition may reach a process or a reader late: other processes cache for a second, requests that
have begun are finished, readers poll, and clocks differ. A clock may step back by half of it."""

_BROKEN_CLOCK = 86400
"""Seconds that a date may lie in the future before it counts as written by a wrong clock."""

State = Literal["next", "active", "retiring"]
"""Published and not signing yet; signing; published and no longer signing. A key that was removed has no row."""


@dataclass(frozen=True, slots=True)
class KeyLifecycle:
    """Where a signing key is in its lifecycle. Times are seconds since the epoch."""

    kid: str
    alg: str
    state: State
    published_at: int
    retired_at: int | None = None
    """When it last signed; set for retiring keys only."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How long each stage of the lifecycle takes. Durations are seconds."""

    alg: str
    """The algorithm of new keys."""
    period: int
    """How long one key signs before the next one replaces it."""
    max_age: int = KEY_SET_MAX_AGE
    lifetime: int = MAX_LIFETIME
    """The longest lifetime of a token."""
    leeway: int = LEEWAY
    """How long a resource server accepts a token after its `exp`."""

    @property
    def lead(self) -> int:
        """How long a key is published before it signs: after that, every cached key set contains it."""
        return self.max_age + SLACK

    @property
    def tail(self) -> int:
        """How long a key stays published after it last signed: after that, all of its tokens have expired."""
        return self.lifetime + self.leeway + SLACK

    def signs_at(self, key: KeyLifecycle) -> int:
        """Return when a next key becomes active."""
        return key.published_at + self.lead

    def successor_at(self, key: KeyLifecycle) -> int:
        """Return when the successor of an active key is created, in time to replace it."""
        return key.published_at + self.period

    def signs_until(self, key: KeyLifecycle) -> int:
        """Return when a key must stop signing, whatever state the database has it in.

        Usually its successor became active before: this covers a server that was down then, or a restored backup.
        """
        return key.published_at + self.lead + self.period + 2 * self.lead

    def removed_at(self, key: KeyLifecycle) -> int:
        """Return when a retiring key leaves the key set."""
        return (key.retired_at or key.published_at) + self.tail


@dataclass(frozen=True, slots=True)
class Transition:
    """One step in the lifecycle of one key."""

    action: Literal["publish", "activate", "retire", "remove"]
    kid: str | None = None
    """The key; None for one that is not created yet. If that one is activated, it signs at once."""


def plan(now: int, keys: Sequence[KeyLifecycle], policy: Policy) -> tuple[Transition, ...]:
    """Return the transitions that are due, in the order to apply them. After them, one key is active.

    `keys` holds at most one active key. It may come from a backup of any age, and `now` may be any time after it.
    """
    expired = [transition for key in keys if (transition := _expire(now, key, policy)) is not None]
    expired_kids = {transition.kid for transition in expired}
    remaining = [key for key in keys if key.kid not in expired_kids]
    active = next((key for key in remaining if key.state == "active"), None)
    waiting = sorted((key for key in remaining if key.state == "next"), key=lambda key: (key.published_at, key.kid))
    if active is None:
        # A key that is published already has reached more readers than a new one.
        return (*expired, Transition("activate", waiting[0].kid if waiting else None))
    if waiting and now >= policy.signs_at(waiting[0]):
        return (*expired, Transition("retire", active.kid), Transition("activate", waiting[0].kid))
    if not waiting and _needs_successor(now, active, policy):
        return (*expired, Transition("publish"))
    return tuple(expired)


def signer(now: int, keys: Sequence[KeyLifecycle], policy: Policy) -> KeyLifecycle | None:
    """Return the key that may sign now, or None until the transitions that are due have been applied."""
    return next((key for key in keys if key.state == "active" and now < policy.signs_until(key)), None)


def next_rotation(keys: Sequence[KeyLifecycle], policy: Policy) -> int | None:
    """Return when a next key is due to sign or, without one, to be published. None if no key is active."""
    waiting = [policy.signs_at(key) for key in keys if key.state == "next"]
    return min(waiting or [policy.successor_at(key) for key in keys if key.state == "active"], default=None)


def _expire(now: int, key: KeyLifecycle, policy: Policy) -> Transition | None:
    """Return the transition out of a state whose time has passed.

    A next key past its time may have signed after the backup that it comes from was made: it is retired, so that it
    stays published as long as a key that did sign.
    """
    if key.state == "retiring":
        if now >= policy.removed_at(key):
            return Transition("remove", key.kid)
        return Transition("retire", key.kid) if _is_in_the_future(now, key.retired_at) else None
    if now >= policy.signs_until(key):
        return Transition("retire", key.kid)
    if key.state == "next" and _is_in_the_future(now, key.published_at):
        return Transition("retire", key.kid)
    return None


def _needs_successor(now: int, active: KeyLifecycle, policy: Policy) -> bool:
    return now >= policy.successor_at(active) or active.alg != policy.alg or _is_in_the_future(now, active.published_at)


def _is_in_the_future(now: int, date: int | None) -> bool:
    """Tell whether a date can only come from a wrong clock."""
    return date is not None and date > now + _BROKEN_CLOCK
