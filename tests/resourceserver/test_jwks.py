"""The issuer's key set: when it is fetched, and what replaces it."""

import json
import logging

import anyio
import pytest
from support.clock import FakeClock
from support.key_sets import GOOD, KEY, OTHER_KEY, key_set

from gatehouse.resourceserver.bearer.jwks import COOLDOWN, FIRST_COOLDOWN, KeySource, KeysUnavailable
from gatehouse.shared.service.fetch import Fetched, FetchFailed

pytestmark = pytest.mark.anyio


class Answers:
    """A fetch with prepared responses, which counts its calls."""

    def __init__(self, document: bytes = GOOD, etag: str | None = '"1"') -> None:
        self.answer: Fetched | FetchFailed | None = Fetched(document, etag)
        self.etags: list[str | None] = []
        self.gate = anyio.Event()
        self.gate.set()

    async def __call__(self, etag: str | None) -> Fetched | None:
        self.etags.append(etag)
        await self.gate.wait()
        if isinstance(self.answer, FetchFailed):
            raise self.answer
        return self.answer


@pytest.fixture
async def answers(anyio_backend: str) -> Answers:
    return Answers()


@pytest.fixture
def keys(answers: Answers, clock: FakeClock) -> KeySource:
    return KeySource(answers, clock)


async def test_only_the_first_lookup_fetches(keys: KeySource, answers: Answers) -> None:
    assert not keys.ready
    assert keys.keys.get(KEY.kid) is None
    for _ in range(3):
        key = await keys.find(KEY.kid)
        assert key is not None
        assert key.alg == "ES256"
    assert keys.ready
    assert keys.keys.get(KEY.kid) is key
    assert len(answers.etags) == 1


@pytest.mark.threat("T-018")
async def test_concurrent_requests_for_an_unknown_kid_share_one_fetch(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    await keys.refresh()
    clock.advance(COOLDOWN)
    answers.answer = Fetched(key_set(KEY.public_jwk(), OTHER_KEY.public_jwk()), None)
    answers.gate = anyio.Event()
    found: list[bool] = []

    async def ask() -> None:
        found.append(await keys.find(OTHER_KEY.kid) is not None)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask)
        await anyio.wait_all_tasks_blocked()
        assert keys.keys.get(KEY.kid) is not None
        answers.gate.set()
    assert found == [True] * 50
    assert len(answers.etags) == 2


async def test_a_fetch_longer_than_the_cooldown_is_shared_too(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    """Otherwise, with a silent issuer, every request with an invented kid would wait for a time-out of its own."""
    await keys.refresh()
    clock.advance(COOLDOWN)
    answers.gate = anyio.Event()

    async def ask(kid: str) -> None:
        assert await keys.find(kid) is None

    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ask, f"invented-{number}")
        await anyio.wait_all_tasks_blocked()
        clock.advance(COOLDOWN)
        answers.gate.set()
    await ask("invented-after")
    assert len(answers.etags) == 2


@pytest.mark.threat("T-018")
async def test_a_flood_of_invented_kids_costs_one_fetch_per_cooldown(
    keys: KeySource, answers: Answers, clock: FakeClock
) -> None:
    await keys.refresh()
    for round_ in range(3):
        clock.advance(COOLDOWN - 0.001)
        for number in range(20):
            assert await keys.find(f"early-{round_}-{number}") is None
        assert len(answers.etags) == 1 + round_
        clock.advance(0.001)
        for number in range(20):
            assert await keys.find(f"invented-{round_}-{number}") is None
        assert len(answers.etags) == 2 + round_
        assert keys.keys.get(KEY.kid) is not None


PRIVATE_KEY = json.loads(KEY.private_jwk())
BAD_ANSWERS = {
    "no-answer": FetchFailed("ConnectError"),
    "not-json": Fetched(b"<html>", '"2"'),
    "empty": Fetched(b"", '"2"'),
    "a-list": Fetched(b"[]", '"2"'),
    "no-keys-member": Fetched(b"{}", '"2"'),
    "no-keys": Fetched(key_set(), '"2"'),
    "a-repeated-member": Fetched(b'{"keys": [], ' + GOOD[1:], '"2"'),
    "a-private-key": Fetched(key_set(OTHER_KEY.public_jwk(), {**PRIVATE_KEY, "kid": "p", "alg": "ES256"}), '"2"'),
    "a-symmetric-key": Fetched(key_set(OTHER_KEY.public_jwk(), {"kty": "oct", "k": "c2VjcmV0", "kid": "s"}), '"2"'),
    "one-kid-twice": Fetched(key_set(OTHER_KEY.public_jwk(), {**KEY.public_jwk(), "kid": OTHER_KEY.kid}), '"2"'),
    "only-encryption-keys": Fetched(key_set({**OTHER_KEY.public_jwk(), "use": "enc"}), '"2"'),
    "10000-keys": Fetched(key_set(*[{"kty": "EC", "kid": str(n)} for n in range(10_000)]), '"2"'),
}


@pytest.mark.threat("T-019")
@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_an_invalid_response_never_replaces_a_valid_set(
    keys: KeySource, answers: Answers, answer: Fetched | FetchFailed
) -> None:
    await keys.refresh()
    known = keys.keys.get(KEY.kid)
    answers.answer = answer
    await keys.refresh()
    assert keys.ready
    assert keys.keys.get(KEY.kid) is known
    assert keys.keys.get(OTHER_KEY.kid) is None
    answers.answer = Fetched(key_set(OTHER_KEY.public_jwk()), '"3"')
    await keys.refresh()
    assert keys.keys.get(OTHER_KEY.kid) is not None
    assert keys.keys.get(KEY.kid) is None
    # The entity tag of a refused document does not belong to the set in use.
    assert answers.etags == [None, '"1"', '"1"']


async def test_an_unchanged_set_stays(keys: KeySource, answers: Answers) -> None:
    await keys.refresh()
    answers.answer = None
    await keys.refresh()
    await keys.refresh()
    assert keys.keys.get(KEY.kid) is not None
    assert answers.etags == [None, '"1"', '"1"']


@pytest.mark.parametrize("answer", BAD_ANSWERS.values(), ids=BAD_ANSWERS)
async def test_keys_are_unavailable_only_until_the_first_is_known(
    keys: KeySource, answers: Answers, clock: FakeClock, answer: Fetched | FetchFailed
) -> None:
    good, answers.answer = answers.answer, answer
    for _ in range(3):
        with pytest.raises(KeysUnavailable):
            await keys.find(KEY.kid)
    assert len(answers.etags) == 1
    answers.answer = good
    clock.advance(FIRST_COOLDOWN)
    assert await keys.find(KEY.kid) is not None
    answers.answer = answer
    clock.advance(COOLDOWN)
    assert await keys.find("unknown") is None
    assert await keys.find(KEY.kid) is not None


async def test_keys_that_are_not_used_are_logged_once(
    keys: KeySource, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    encryption = {**OTHER_KEY.public_jwk(), "kid": "enc-1", "use": "enc"}
    answers.answer = Fetched(key_set(KEY.public_jwk(), encryption), None)
    await keys.refresh()
    await keys.refresh()
    assert keys.keys.keys() == {KEY.kid}
    answers.answer = Fetched(GOOD, None)
    await keys.refresh()
    assert caplog.messages == [
        "keys of the issuer that are not used: key 2 (enc-1): its use is enc, not sig",
        "keys of the issuer that are not used: none",
    ]


async def test_an_outage_is_logged_once_at_its_start_and_once_at_its_end(
    keys: KeySource, answers: Answers, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gatehouse.resourceserver.bearer.jwks")
    good = answers.answer
    await keys.refresh()
    assert caplog.messages == []
    answers.answer = FetchFailed("ConnectError")
    for _ in range(5):
        await keys.refresh()
    answers.answer = good
    await keys.refresh()
    assert caplog.messages == [
        "the issuer's key set was not renewed (1 keys stay in use): ConnectError",
        "the issuer's key set is renewed: 1 keys in use",
    ]


async def test_polling_fetches_before_the_first_request(keys: KeySource) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(keys.poll)
        await anyio.wait_all_tasks_blocked()
        assert keys.keys.get(KEY.kid) is not None
        tasks.cancel_scope.cancel()
