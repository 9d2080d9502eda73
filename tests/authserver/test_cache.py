"""The cache that lets a change of client or key take effect within one second."""

import pytest
from support.authserver import RESOURCE, AuthServer
from support.clock import FakeClock

from gatehouse.authserver.cache import OneSecondCache
from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.clients.registry import ClientRegistry


class Source:
    """Counts what is loaded from it."""

    def __init__(self) -> None:
        self.values: dict[str, str | None] = {}
        self.loads: list[str] = []

    def load(self, key: str) -> str | None:
        self.loads.append(key)
        return self.values.get(key)


@pytest.fixture
def source() -> Source:
    return Source()


def test_a_value_is_loaded_once_in_a_second(source: Source, clock: FakeClock) -> None:
    cache = OneSecondCache(source.load, monotonic=clock)
    source.values["a"] = "old"
    assert cache.get("a") == "old"
    source.values["a"] = "new"
    clock.advance(0.75)
    assert cache.get("a") == "old"
    clock.advance(0.25)
    assert cache.get("a") == "new"
    assert source.loads == ["a", "a"]


def test_absence_is_remembered_as_long_as_presence(source: Source, clock: FakeClock) -> None:
    cache = OneSecondCache(source.load, monotonic=clock)
    assert cache.get("a") is None
    assert cache.get("a") is None
    assert source.loads == ["a"]
    source.values["a"] = "here"
    clock.advance(1)
    assert cache.get("a") == "here"


def test_the_age_counts_from_before_the_load(clock: FakeClock) -> None:
    """What changes while a slow load runs must not stay hidden for longer than a second."""
    loads: list[float] = []

    def slow(_: str) -> float:
        loads.append(clock())
        clock.advance(0.5)
        return loads[-1]

    cache = OneSecondCache(slow, monotonic=clock)
    first = cache.get("a")
    clock.advance(0.25)
    assert cache.get("a") == first
    clock.advance(0.25)
    assert cache.get("a") != first


def test_a_failed_load_is_raised_and_not_remembered(source: Source, clock: FakeClock) -> None:
    def load(key: str) -> str:
        value = source.load(key)
        if value is None:
            raise LookupError(key)
        return value

    cache = OneSecondCache(load, monotonic=clock)
    with pytest.raises(LookupError):
        cache.get("a")
    source.values["a"] = "here"
    assert cache.get("a") == "here"


def test_the_cache_is_bounded_and_forgets_the_oldest(source: Source, clock: FakeClock) -> None:
    cache = OneSecondCache(source.load, size=2, monotonic=clock)
    for key in ("a", "b", "c", "b", "c", "a"):
        cache.get(key)
    assert source.loads == ["a", "b", "c", "a"]


@pytest.mark.both_databases
def test_a_change_of_a_client_takes_effect_within_one_second(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    registry = ClientRegistry(authserver.services.database, monotonic=clock)
    before = registry.find(client.client_id)
    assert before == client
    with authserver.services.database.write() as session:
        set_disabled(session, authserver.admin, client.client_id, disabled=True)
    authserver.add_grant(client, "org:read")
    assert registry.find(client.client_id) == before
    clock.advance(1)
    after = registry.find(client.client_id)
    assert after is not None
    assert after.disabled
    assert after.grants == {RESOURCE: {"env:read", "org:read"}}
