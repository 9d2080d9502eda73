"""The lifecycle of signing keys, over any sequence of clock changes, rotations, restarts and backups."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.authserver.keys.lifecycle import SLACK, KeyLifecycle, Policy, Transition, plan, signer
from gatehouse.shared.protocol.clock import LEEWAY

DAY = 86400
NOW = 1_800_000_000
POLICY = Policy(alg="ES256", period=30 * DAY)
TICK = 30
"""Seconds between two runs of the plan in a server that is up."""
REACTION = 20
"""Seconds that another process may use what it read before a transition: its cache, and a request in progress."""


def key(kid: str = "a", state: str = "active", published_at: int = NOW, **changes: object) -> KeyLifecycle:
    return KeyLifecycle(kid=kid, alg="ES256", state=state, published_at=published_at, **changes)  # type: ignore[arg-type]


def test_the_first_key_signs_at_once() -> None:
    assert plan(NOW, [], POLICY) == (Transition("activate"),)


def test_a_key_in_the_middle_of_its_period_has_no_transition() -> None:
    assert plan(NOW + 15 * DAY, [key()], POLICY) == ()


def test_the_next_key_is_published_before_the_active_one_ends() -> None:
    active = key()
    at = POLICY.successor_at(active)
    assert plan(at - 1, [active], POLICY) == ()
    assert plan(at, [active], POLICY) == (Transition("publish"),)
    assert plan(at + 1, [active, key("b", "next", at)], POLICY) == ()


def test_a_next_key_signs_when_every_cached_key_set_contains_it() -> None:
    active, successor = key(), key("b", "next", NOW + 100)
    at = POLICY.signs_at(successor)
    assert at >= successor.published_at + POLICY.max_age
    assert plan(at - 1, [active, successor], POLICY) == ()
    assert plan(at, [active, successor], POLICY) == (Transition("retire", "a"), Transition("activate", "b"))


def test_a_retiring_key_stays_until_its_last_token_has_expired() -> None:
    retiring, active = key(state="retiring", retired_at=NOW), key("b")
    at = POLICY.removed_at(retiring)
    assert at >= NOW + POLICY.lifetime + LEEWAY
    assert plan(at - 1, [retiring, active], POLICY) == ()
    assert plan(at, [retiring, active], POLICY) == (Transition("remove", "a"),)


def test_a_key_of_a_new_algorithm_is_published_before_it_signs() -> None:
    policy = replace(POLICY, alg="EdDSA")
    assert plan(NOW, [key()], POLICY) == ()
    assert plan(NOW, [key()], policy) == (Transition("publish"),)
    successor = replace(key("b", "next"), alg="EdDSA")
    assert plan(NOW + 1, [key(), successor], policy) == ()
    assert plan(NOW + policy.lead, [key(), successor], policy) == (
        Transition("retire", "a"),
        Transition("activate", "b"),
    )


def test_an_expired_key_is_replaced_by_the_published_one() -> None:
    active = key()
    deadline = POLICY.signs_until(active)
    successor = key("b", "next", deadline - 10)
    assert plan(deadline - 1, [active, successor], POLICY) == ()
    assert plan(deadline, [active, successor], POLICY) == (Transition("retire", "a"), Transition("activate", "b"))
    assert plan(deadline, [active], POLICY) == (Transition("retire", "a"), Transition("activate"))


def test_only_the_active_key_signs_and_only_until_it_expires() -> None:
    active, successor = key(), key("b", "next")
    deadline = POLICY.signs_until(active)
    assert signer(deadline - 1, [successor, active], POLICY) == active
    assert signer(deadline, [successor, active], POLICY) is None
    assert signer(NOW, [successor], POLICY) is None


@pytest.mark.threat("T-088")
def test_no_key_of_an_old_backup_signs() -> None:
    backup = [key(), key("b", "next", NOW + 10), key("c", "retiring", NOW - DAY, retired_at=NOW)]
    assert plan(NOW + 20, backup, POLICY) == ()
    transitions = plan(NOW + 31 * DAY, backup, POLICY)
    assert set(transitions[:-1]) == {Transition("retire", "a"), Transition("retire", "b"), Transition("remove", "c")}
    assert transitions[-1] == Transition("activate")


def test_of_two_next_keys_the_one_published_first_signs() -> None:
    later, first = key("a", "next", NOW + 1), key("z", "next", NOW)
    transitions = plan(NOW + POLICY.lead + 1, [key("m", published_at=NOW - DAY), later, first], POLICY)
    assert transitions == (Transition("retire", "m"), Transition("activate", "z"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(lambda at: [key(published_at=at)], (Transition("publish"),), id="active"),
        pytest.param(lambda at: [key(), key("b", "next", at)], (Transition("retire", "b"),), id="next"),
        pytest.param(
            lambda at: [key(), key("b", "retiring", NOW - DAY, retired_at=at)],
            (Transition("retire", "b"),),
            id="retiring",
        ),
    ],
)
def test_a_date_from_a_wrong_clock_does_not_delay_rotation(
    keys: Callable[[int], list[KeyLifecycle]], expected: tuple[Transition, ...]
) -> None:
    assert plan(NOW, keys(NOW + LEEWAY), POLICY) == ()
    assert plan(NOW, keys(NOW + 400 * DAY), POLICY) == expected


@dataclass
class World:
    """An authorization server, every cached copy of its key set, and every token that it signed.

    `now` is the true time. The server's clock differs by `offset`; changing it makes the clock step back.
    """

    policy: Policy
    now: int = NOW
    offset: int = 0
    keys: dict[str, KeyLifecycle] = field(default_factory=dict)
    created: int = 0
    served: frozenset[str] = frozenset()
    """The key set that is served now."""
    copies: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    """Earlier key sets, and when each was served last."""
    tokens: list[tuple[int, str]] = field(default_factory=list)
    """True end of acceptance, and kid, of every token that has not expired."""
    deadlines: dict[str, int] = field(default_factory=dict)
    """By the server's clock, when each key must stop signing, as first computed."""

    def run_plan(self, last_served: int | None = None) -> None:
        """Act as the maintenance loop, or as a process that starts: readers were last served before that."""
        clock = self.now + self.offset
        created = self.created
        # When processes run the plan one after the other, the later ones find nothing to do. Only a next key that
        # waited for most of a period is activated in the first run and gets its successor in the second.
        for _ in range(2):
            for transition in plan(clock, list(self.keys.values()), self.policy):
                self.apply(transition)
            assert [each.state for each in self.keys.values()].count("active") == 1
        assert plan(clock, list(self.keys.values()), self.policy) == ()
        assert self.created - created <= 1
        self.serve(last_served)

    def apply(self, transition: Transition) -> None:
        kid, clock = transition.kid, self.now + self.offset
        if kid is None:
            self.created += 1
            kid = f"k{self.created}"
            self.keys[kid] = KeyLifecycle(kid, self.policy.alg, "next", clock)
            self.deadlines[kid] = self.policy.signs_until(self.keys[kid])
        match transition.action:
            case "activate":
                assert all(each.state != "active" for each in self.keys.values())
                self.keys[kid] = replace(self.keys[kid], state="active")
            case "retire":
                self.keys[kid] = replace(self.keys[kid], state="retiring", retired_at=clock)
            case "remove":
                del self.keys[kid]

    def serve(self, last_served: int | None = None) -> None:
        if frozenset(self.keys) != self.served:
            self.copies.append((self.now + REACTION if last_served is None else last_served, self.served))
            self.served = frozenset(self.keys)

    @property
    def signer(self) -> str:
        return next(each.kid for each in self.keys.values() if each.state == "active")

    def sign(self, kid: str) -> None:
        """Issue a token of the longest lifetime, for a resource server whose clock is behind."""
        clock = self.now + self.offset
        assert clock < self.deadlines[kid] + REACTION, "signs after its expiry"
        self.tokens.append((clock + self.policy.lifetime + self.policy.leeway + SLACK // 4, kid))

    def check_readers(self) -> None:
        """Check that each valid token is accepted with every copy of the key set that may still be cached."""
        self.tokens = [(end, kid) for end, kid in self.tokens if self.now < end]
        self.copies = [(last, keys) for last, keys in self.copies if self.now < last + self.policy.max_age]
        for _, kid in self.tokens:
            assert kid in self.served
            assert all(kid in keys for _, keys in self.copies)


STEPS = st.one_of(
    st.tuples(st.just("run"), st.integers(1, 3 * DAY)),
    st.tuples(st.just("down"), st.integers(1, 100 * DAY)),
    st.tuples(st.just("down"), st.integers(1, 3600)),
    st.tuples(st.just("rotate"), st.just(0)),
    st.tuples(st.sampled_from(["backup", "restore"]), st.just(0)),
    st.tuples(st.just("clock"), st.integers(-SLACK // 4, SLACK // 4)),
)


def run_for(world: World, seconds: int) -> None:
    """Run a server, with a short step at every moment when a transition is due and long steps between."""
    end = world.now + seconds
    while world.now < end:
        signer = world.signer
        clock = world.now + world.offset
        dues = [world.policy.signs_at(each) for each in world.keys.values() if each.state == "next"]
        dues += [world.policy.removed_at(each) for each in world.keys.values() if each.state == "retiring"]
        dues += [world.policy.successor_at(each) for each in world.keys.values() if each.state == "active"]
        ahead = min((due - clock for due in dues if due > clock), default=DAY)
        world.now = min(end, world.now + max(TICK, ahead - TICK))
        world.run_plan()
        world.sign(world.signer)
        if signer != world.signer and signer in world.keys:
            # Another process, whose cache still has the old key.
            world.sign(signer)
        world.check_readers()


@pytest.mark.threat("T-087")
@settings(max_examples=150)
@given(st.lists(STEPS, min_size=1, max_size=25), st.sampled_from([DAY, 7 * DAY, 30 * DAY]))
def test_at_any_time_valid_tokens_are_accepted_and_one_key_signs(steps: list[tuple[str, int]], period: int) -> None:
    world = World(replace(POLICY, period=period))
    world.run_plan(last_served=0)
    backup = dict(world.keys)
    for step, amount in steps:
        match step:
            case "backup":
                backup = dict(world.keys)
            case "restore":
                # Tokens signed by keys that are not in the backup are lost; the check does not cover them.
                world.keys, world.tokens, world.copies = dict(backup), [], []
                world.run_plan(last_served=0)
                world.sign(world.signer)
            case "run":
                run_for(world, amount)
            case "down":
                went_down = world.now
                world.now += amount
                world.run_plan(last_served=went_down)
                world.sign(world.signer)
            case "rotate":
                if not any(each.state == "next" for each in world.keys.values()):
                    world.apply(Transition("publish"))
                    world.serve()
            case "clock":
                world.offset = amount
                # The loop acts before a long step: a key whose time a jump has passed may sign no longer.
                world.run_plan()
        world.check_readers()
