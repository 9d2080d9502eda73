"""The plan of keys' lives: over any sequence of clocks, rotations, restarts and backups."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gatehouse.authserver.keys.lifecycle import SLACK, Key, Move, Policy, plan, signer
from gatehouse.shared.protocol.clock import LEEWAY

DAY = 86400
NOW = 1_800_000_000
POLICY = Policy(alg="ES256", period=30 * DAY)
TICK = 30
"""Seconds between two runs of the plan in a server that is up."""
REACTION = 20
"""Seconds that another process may go on with what it read before a move: its cache, and a request that has begun."""


def key(kid: str = "a", state: str = "active", published_at: int = NOW, **changes: object) -> Key:
    return Key(kid=kid, alg="ES256", state=state, published_at=published_at, **changes)  # type: ignore[arg-type]


def test_without_a_key_one_is_made_that_signs_at_once() -> None:
    assert plan(NOW, [], POLICY) == (Move("activate"),)


def test_in_the_middle_of_its_life_nothing_happens_to_a_key() -> None:
    assert plan(NOW + 15 * DAY, [key()], POLICY) == ()


def test_the_next_key_is_published_so_early_that_it_is_known_when_the_active_one_ends() -> None:
    active = key()
    at = POLICY.successor_at(active)
    assert plan(at - 1, [active], POLICY) == ()
    assert plan(at, [active], POLICY) == (Move("publish"),)
    assert plan(at + 1, [active, key("b", "next", at)], POLICY) == ()


def test_a_next_key_takes_over_when_no_fresh_copy_of_the_key_set_is_without_it() -> None:
    active, successor = key(), key("b", "next", NOW + 100)
    at = POLICY.signs_at(successor)
    assert at >= successor.published_at + POLICY.max_age
    assert plan(at - 1, [active, successor], POLICY) == ()
    assert plan(at, [active, successor], POLICY) == (Move("retire", "a"), Move("activate", "b"))


def test_a_retiring_key_stays_until_its_last_token_is_refused_everywhere() -> None:
    retiring, active = key(state="retiring", retired_at=NOW), key("b")
    at = POLICY.gone_at(retiring)
    assert at >= NOW + POLICY.lifetime + LEEWAY
    assert plan(at - 1, [retiring, active], POLICY) == ()
    assert plan(at, [retiring, active], POLICY) == (Move("remove", "a"),)


def test_a_change_of_algorithm_publishes_a_key_of_the_new_one_and_then_lets_it_take_over() -> None:
    policy = replace(POLICY, alg="EdDSA")
    assert plan(NOW, [key()], POLICY) == ()
    assert plan(NOW, [key()], policy) == (Move("publish"),)
    successor = replace(key("b", "next"), alg="EdDSA")
    assert plan(NOW + 1, [key(), successor], policy) == ()
    assert plan(NOW + policy.lead, [key(), successor], policy) == (Move("retire", "a"), Move("activate", "b"))


def test_a_key_whose_time_is_over_is_replaced_at_once_by_the_one_that_is_published() -> None:
    active = key()
    over = POLICY.over_at(active)
    successor = key("b", "next", over - 10)
    assert plan(over - 1, [active, successor], POLICY) == ()
    assert plan(over, [active, successor], POLICY) == (Move("retire", "a"), Move("activate", "b"))
    assert plan(over, [active], POLICY) == (Move("retire", "a"), Move("activate"))


def test_only_the_active_key_may_sign_and_only_until_its_time_is_over() -> None:
    active, successor = key(), key("b", "next")
    over = POLICY.over_at(active)
    assert signer(over - 1, [successor, active], POLICY) == active
    assert signer(over, [successor, active], POLICY) is None
    assert signer(NOW, [successor], POLICY) is None


@pytest.mark.threat("T-088")
def test_of_a_backup_that_is_older_than_a_period_no_key_signs() -> None:
    backup = [key(), key("b", "next", NOW + 10), key("c", "retiring", NOW - DAY, retired_at=NOW)]
    assert plan(NOW + 20, backup, POLICY) == ()
    moves = plan(NOW + 31 * DAY, backup, POLICY)
    assert set(moves[:-1]) == {Move("retire", "a"), Move("retire", "b"), Move("remove", "c")}
    assert moves[-1] == Move("activate")


def test_of_two_next_keys_the_one_that_was_published_first_takes_over() -> None:
    later, first = key("a", "next", NOW + 1), key("z", "next", NOW)
    moves = plan(NOW + POLICY.lead + 1, [key("m", published_at=NOW - DAY), later, first], POLICY)
    assert moves == (Move("retire", "m"), Move("activate", "z"))


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        pytest.param(lambda at: [key(published_at=at)], (Move("publish"),), id="active"),
        pytest.param(lambda at: [key(), key("b", "next", at)], (Move("retire", "b"),), id="next"),
        pytest.param(
            lambda at: [key(), key("b", "retiring", NOW - DAY, retired_at=at)], (Move("retire", "b"),), id="retiring"
        ),
    ],
)
def test_a_date_that_a_wrong_clock_wrote_holds_no_rotation_up(
    keys: Callable[[int], list[Key]], expected: tuple[Move, ...]
) -> None:
    assert plan(NOW, keys(NOW + LEEWAY), POLICY) == ()
    assert plan(NOW, keys(NOW + 400 * DAY), POLICY) == expected


@dataclass
class World:
    """An authorization server, every copy of its key set that readers may hold, and every token that it signed.

    `now` is the true time. The server's clock is off by `offset`, which changes: that is how a clock steps back.
    """

    policy: Policy
    now: int = NOW
    offset: int = 0
    keys: dict[str, Key] = field(default_factory=dict)
    made: int = 0
    served: frozenset[str] = frozenset()
    """The key set that readers are given now."""
    copies: list[tuple[int, frozenset[str]]] = field(default_factory=list)
    """Earlier key sets, and when each was given away last."""
    tokens: list[tuple[int, str]] = field(default_factory=list)
    """True end of acceptance, and kid, of every token whose life is not over."""
    over: dict[str, int] = field(default_factory=dict)
    """By the server's clock, the end of each key's time, as it was first told."""

    def run_plan(self, last_served: int | None = None) -> None:
        """What a maintenance loop does, or a process that starts: readers were last served before that."""
        clock = self.now + self.offset
        made = self.made
        # Of processes that run the plan one after the other, the later ones find nothing to do. Only a next key that
        # waited for most of a period takes over in the first run and is given its follower in the second.
        for _ in range(2):
            for move in plan(clock, list(self.keys.values()), self.policy):
                self.make(move)
            assert [each.state for each in self.keys.values()].count("active") == 1
        assert plan(clock, list(self.keys.values()), self.policy) == ()
        assert self.made - made <= 1
        self.serve(last_served)

    def make(self, move: Move) -> None:
        kid, clock = move.kid, self.now + self.offset
        if kid is None:
            self.made += 1
            kid = f"k{self.made}"
            self.keys[kid] = Key(kid, self.policy.alg, "next", clock)
            self.over[kid] = self.policy.over_at(self.keys[kid])
        match move.action:
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
        """Issue a token that lives as long as one can, for a resource server whose clock is behind."""
        clock = self.now + self.offset
        assert clock < self.over[kid] + REACTION, "signs after its time"
        self.tokens.append((clock + self.policy.lifetime + self.policy.leeway + SLACK // 4, kid))

    def check_readers(self) -> None:
        """Each token that is alive is accepted with every copy of the key set that a reader may hold now."""
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
    """Let a server run: dense around every moment at which something is due, sparse where nothing is."""
    end = world.now + seconds
    while world.now < end:
        signer = world.signer
        clock = world.now + world.offset
        dues = [world.policy.signs_at(each) for each in world.keys.values() if each.state == "next"]
        dues += [world.policy.gone_at(each) for each in world.keys.values() if each.state == "retiring"]
        dues += [world.policy.successor_at(each) for each in world.keys.values() if each.state == "active"]
        ahead = min((due - clock for due in dues if due > clock), default=DAY)
        world.now = min(end, world.now + max(TICK, ahead - TICK))
        world.run_plan()
        world.sign(world.signer)
        if signer != world.signer and signer in world.keys:
            # Another process, whose cache has not heard of it yet.
            world.sign(signer)
        world.check_readers()


@pytest.mark.threat("T-087")
@settings(max_examples=150)
@given(st.lists(STEPS, min_size=1, max_size=25), st.sampled_from([DAY, 7 * DAY, 30 * DAY]))
def test_over_any_life_of_a_server_every_live_token_is_accepted_and_one_key_signs(
    steps: list[tuple[str, int]], period: int
) -> None:
    world = World(replace(POLICY, period=period))
    world.run_plan(last_served=0)
    backup = dict(world.keys)
    for step, amount in steps:
        match step:
            case "backup":
                backup = dict(world.keys)
            case "restore":
                # What was signed by keys that the backup knows nothing of is lost, and nothing is promised for it.
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
                    world.make(Move("publish"))
                    world.serve()
            case "clock":
                world.offset = amount
        world.check_readers()
