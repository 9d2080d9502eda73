"""Status lists at the resource server: revoked tokens, and what happens while the issuer is unavailable."""

import json
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from support.clock import FakeClock
from support.resourceserver import ISSUER, LIST, RESOURCE, Issuer

from gatehouse.resourceserver.bearer import status, status_names
from gatehouse.resourceserver.bearer.jwks import KeySource
from gatehouse.resourceserver.bearer.status import COOLDOWN, FIRST_RETRY, StatusLists, StatusUnavailable
from gatehouse.resourceserver.bearer.verifier import TokenRefused, Verifier
from gatehouse.shared.protocol.claims import MAX_LIFETIME, StatusReference
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey, read_unverified_claims
from gatehouse.shared.protocol.status_list import LIST_SIZE, encode
from gatehouse.shared.service.fetch import Fetched, FetchFailed

pytestmark = pytest.mark.anyio

OTHER_LIST = f"{ISSUER}/status-lists/ba9876543210"


@pytest.fixture
def issuer(clock: FakeClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
async def keys(issuer: Issuer, clock: FakeClock, anyio_backend: str) -> KeySource:
    source = KeySource(issuer.fetch, clock)
    await source.refresh()
    return source


@pytest.fixture
def lists(issuer: Issuer, keys: KeySource) -> StatusLists:
    return issuer.statuses(keys)


@pytest.fixture
def verifier(keys: KeySource, lists: StatusLists, clock: FakeClock) -> Verifier:
    return Verifier(ISSUER, RESOURCE, keys, lists, clock)


async def reason_of_refusal(verifier: Verifier, token: str) -> str:
    with pytest.raises(TokenRefused) as refusal:
        await verifier.verify(token)
    assert refusal.value.claims is not None
    return refusal.value.reason


@pytest.mark.threat("T-014")
async def test_a_cached_token_is_refused_from_the_next_poll_after_revocation(
    verifier: Verifier, issuer: Issuer, lists: StatusLists
) -> None:
    token, other = issuer.token(), issuer.token()
    claims = await verifier.verify(token)
    await verifier.verify(other)
    assert claims.status is not None
    issuer.revoke(claims.status.idx)
    await verifier.verify(token)
    await lists.refresh()
    assert await reason_of_refusal(verifier, token) == "revoked"
    await verifier.verify(other)


@pytest.mark.divergence("D-32")
@pytest.mark.threat("T-015")
async def test_a_token_without_status_is_refused(verifier: Verifier, issuer: Issuer) -> None:
    """The holder of a stolen key could sign such a token, and it could not be revoked."""
    await verifier.verify(issuer.token())
    assert await reason_of_refusal(verifier, issuer.token(status=None)) == "the token has no status"


@pytest.mark.threat("T-015")
async def test_an_index_beyond_its_list_is_refused(verifier: Verifier, issuer: Issuer) -> None:
    def token(idx: int) -> str:
        return issuer.token(status={"status_list": {"idx": idx, "uri": LIST}})

    await verifier.verify(token(LIST_SIZE - 1))
    assert await reason_of_refusal(verifier, token(LIST_SIZE)) == "the index is beyond the status list"


@pytest.mark.threat("T-016")
@pytest.mark.parametrize(
    "uri",
    [
        "https://evil.example/status-lists/0123456789ab",
        f"{ISSUER}.evil.example/status-lists/0123456789ab",
        f"{ISSUER}/status-lists/../token",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
    ],
)
async def test_a_list_of_another_origin_is_never_fetched(verifier: Verifier, issuer: Issuer, uri: str) -> None:
    await verifier.verify(issuer.token())
    assert issuer.list_fetches == [LIST]
    token = issuer.token(status={"status_list": {"idx": 1, "uri": uri}})
    assert await reason_of_refusal(verifier, token) == "the status list is not the issuer's"
    assert issuer.list_fetches == [LIST]


async def test_the_issuers_lists_are_known_before_their_first_token(
    verifier: Verifier, issuer: Issuer, lists: StatusLists
) -> None:
    assert (lists.state, lists.ready) == ("none is known", False)
    issuer.lists["https://evil.example/status-lists/0123456789ab"] = bytearray(1)
    await lists.refresh()
    assert (lists.state, lists.ready) == ("ok", True)
    assert issuer.list_fetches == [f"{ISSUER}/status-lists", LIST]
    issuer.away = True
    await verifier.verify(issuer.token())


async def test_lists_of_another_issuer_leave_the_server_not_ready(
    issuer: Issuer, keys: KeySource, caplog: pytest.LogCaptureFixture
) -> None:
    other = b'{"status_lists": ["https://other.example/status-lists/0123456789ab"]}'

    def fetch_from(url: str) -> Callable[[str | None], Any]:
        async def fetch(_: str | None) -> Fetched:
            return Fetched(other, None)

        return fetch if url == f"{ISSUER}/status-lists" else issuer.fetch_from(url)

    lists = StatusLists(ISSUER, fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    await lists.refresh()
    assert (lists.state, lists.ready) == ("none is known", False)
    assert "set RESOURCESERVER_ISSUER to exactly the issuer" in caplog.text


async def test_a_list_that_the_issuer_no_longer_names_is_dropped(
    verifier: Verifier, issuer: Issuer, lists: StatusLists, clock: FakeClock
) -> None:
    await verifier.verify(issuer.token())
    issuer.lists[OTHER_LIST] = issuer.lists.pop(LIST)
    await lists.refresh()
    clock.advance(2000)
    await lists.refresh()
    assert lists.state == "ok"
    with pytest.raises(StatusUnavailable):
        await verifier.verify(issuer.token())


@pytest.mark.threat("T-085")
async def test_a_list_is_kept_for_the_lifetime_of_its_tokens(issuer: Issuer, keys: KeySource, clock: FakeClock) -> None:
    """draft-ietf-oauth-status-list 8.3: a server that fails open would accept a token that it knows to be revoked."""
    lists = issuer.statuses(keys, fail_open=True)
    issuer.revoke(7)
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 1)) is None
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    document = issuer.lists.pop(LIST)
    await lists.refresh()
    clock.advance(MAX_LIFETIME + 2 * LEEWAY)
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    assert lists.state == "ok", "a dropped list does not count as missing"
    clock.advance(1)
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) is None, "the list is unknown, and the server fails open"
    issuer.lists[LIST] = document
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"


async def test_concurrent_requests_for_an_unknown_list_share_one_fetch(issuer: Issuer, keys: KeySource) -> None:
    begun, answer = anyio.Event(), anyio.Event()
    fetches: list[str] = []

    def fetch_from(url: str) -> Callable[[str | None], Any]:
        async def fetch(etag: str | None) -> Fetched | None:
            fetches.append(url)
            begun.set()
            await answer.wait()
            return await issuer.fetch_from(url)(etag)

        return fetch

    lists = StatusLists(ISSUER, fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    outcomes: list[str | None] = []

    async def ask(idx: int) -> None:
        outcomes.append(await lists.refusal(StatusReference(LIST, idx)))

    async with anyio.create_task_group() as tasks:
        for idx in range(5):
            tasks.start_soon(ask, idx)
        await begun.wait()
        answer.set()
    assert (outcomes, fetches) == ([None] * 5, [LIST])


async def test_an_unknown_list_is_fetched_once_per_cooldown(
    verifier: Verifier, issuer: Issuer, clock: FakeClock
) -> None:
    issuer.away = True
    token = issuer.token()
    for _ in range(5):
        with pytest.raises(StatusUnavailable):
            await verifier.verify(token)
    assert issuer.list_fetches == [LIST]
    issuer.away = False
    clock.advance(COOLDOWN)
    await verifier.verify(token)
    assert issuer.list_fetches == [LIST, LIST]


@pytest.mark.threat("T-126")
async def test_a_list_is_trusted_up_to_its_maximum_age(
    verifier: Verifier, issuer: Issuer, lists: StatusLists, clock: FakeClock
) -> None:
    await lists.refresh()
    issuer.away = True
    clock.advance(900)
    await lists.refresh()
    revoked, live = issuer.token(), issuer.token()
    await verifier.verify(live)
    assert (lists.state, lists.ready) == ("ok", True)
    clock.advance(1)
    with pytest.raises(StatusUnavailable):
        await verifier.verify(live)
    assert (lists.state, lists.ready) == ("1 of 1 are stale", False)
    issuer.away = False
    issuer.revoke(unverified_index(revoked))
    await lists.refresh()
    await verifier.verify(live)
    assert await reason_of_refusal(verifier, revoked) == "revoked"
    assert lists.state == "ok"


def unverified_index(token: str) -> int:
    index: int = read_unverified_claims(token)["status"]["status_list"]["idx"]
    return index


async def test_an_expired_list_is_not_trusted(issuer: Issuer, keys: KeySource, clock: FakeClock) -> None:
    lists = issuer.statuses(keys, max_age=3600)
    await lists.refresh()
    clock.advance(3600)
    assert await lists.refusal(StatusReference(LIST, 1)) is None
    lists = issuer.statuses(keys, max_age=10_000)
    await lists.refresh()
    clock.advance(3600 + LEEWAY)
    with pytest.raises(StatusUnavailable):
        await lists.refusal(StatusReference(LIST, 1))


@pytest.mark.threat("T-126")
async def test_a_server_that_fails_open_still_refuses_revoked_tokens(
    issuer: Issuer, keys: KeySource, clock: FakeClock
) -> None:
    lists = issuer.statuses(keys, fail_open=True)
    issuer.revoke(7)
    await lists.refresh()
    issuer.away = True
    clock.advance(1000)
    assert await lists.refusal(StatusReference(LIST, 1)) is None
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    assert await lists.refusal(StatusReference(OTHER_LIST, 7)) is None
    assert await lists.refusal(None) == "the token has no status"
    assert (lists.state, lists.ready) == ("2 of 2 are stale", True)


def signed_by_a_stranger(issuer: Issuer) -> str:
    stranger = SigningKey.generate("ES256")
    return stranger.sign("statuslist+jwt", {})


@pytest.mark.divergence("D-33")
@pytest.mark.threat("T-017")
@pytest.mark.parametrize(
    ("forge", "reason"),
    [
        (lambda issuer: issuer.list_token(typ="at+jwt"), "typ is not statuslist"),
        (signed_by_a_stranger, "kid is not in the issuer's key set"),
        (lambda issuer: issuer.list_token()[:-8] + "AAAAAAAA", "signature does not match"),
        (lambda issuer: issuer.list_token(sub=OTHER_LIST), "sub is not the list's URI"),
        (lambda issuer: issuer.list_token(sub=None), "sub is not the list's URI"),
        (lambda issuer: issuer.list_token(iat=None), "iat or exp is not"),
        (lambda issuer: issuer.list_token(exp=None), "iat or exp is not"),
        (lambda issuer: issuer.list_token(exp=True), "iat or exp is not"),
        (lambda issuer: issuer.list_token(iat=int(issuer.clock()) + LEEWAY + 1), "issued in the future"),
        (lambda issuer: issuer.list_token(exp=int(issuer.clock()) - LEEWAY), "expired"),
        (lambda issuer: issuer.list_token(status_list=None), "not a list of single bits"),
        (lambda issuer: issuer.list_token(status_list=encode(bytes(2**20))), "decompresses to more"),
        (lambda issuer: issuer.list_token(status_list=encode(b"\0")), "shorter than it was"),
        (lambda issuer: "x" * 70_000, "longer than 64 KiB"),
        (lambda issuer: "é", "not a compact JWS"),
    ],
)
async def test_an_invalid_list_never_replaces_a_valid_one(
    issuer: Issuer,
    keys: KeySource,
    caplog: pytest.LogCaptureFixture,
    forge: Callable[[Issuer], str],
    reason: str,
) -> None:
    lists = issuer.statuses(keys)
    issuer.revoke(7)
    await lists.refresh()
    forged = forge(issuer)
    issuer.list_token = lambda uri: forged  # type: ignore[assignment]
    await lists.refresh()
    await lists.refresh()
    [record] = caplog.records
    assert reason in record.getMessage()
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    assert await lists.refusal(StatusReference(LIST, 8)) is None
    del issuer.list_token
    with caplog.at_level("INFO"):
        await lists.refresh()
    assert caplog.records[-1].getMessage() == f"the status list {LIST} is renewed"


@pytest.mark.divergence("D-35")
@pytest.mark.threat("T-017")
async def test_an_older_list_changes_neither_bits_nor_age(issuer: Issuer, keys: KeySource, clock: FakeClock) -> None:
    lists = issuer.statuses(keys)
    older = issuer.list_token()
    clock.advance(60)
    issuer.revoke(7)
    await lists.refresh()
    issuer.list_token = lambda uri: older  # type: ignore[assignment]
    clock.advance(900)
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    assert await lists.refusal(StatusReference(LIST, 8)) is None
    clock.advance(1)
    with pytest.raises(StatusUnavailable):
        await lists.refusal(StatusReference(LIST, 8))


async def test_a_list_is_not_accepted_without_a_key_of_the_issuer(
    issuer: Issuer, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    async def away(etag: str | None) -> Fetched | None:
        raise FetchFailed("away")

    lists = issuer.statuses(KeySource(away, clock))
    with pytest.raises(StatusUnavailable):
        await lists.refusal(StatusReference(LIST, 1))
    assert "no key of the issuer is known" in caplog.text


@pytest.mark.parametrize("document", [b"[]", b"{}", b'{"status_lists": "x"}', b"no JSON", None])
async def test_invalid_names_of_lists_are_logged_once_and_change_nothing(
    issuer: Issuer, keys: KeySource, caplog: pytest.LogCaptureFixture, document: bytes | None
) -> None:
    names: list[bytes | None] = [f'{{"status_lists": ["{LIST}", 7, "x"]}}'.encode(), document, document]

    def fetch_from(url: str) -> Callable[[str | None], Any]:
        async def fetch(_: str | None) -> Fetched | None:
            named = names.pop(0)
            return None if named is None else Fetched(named, None)

        return fetch if url == f"{ISSUER}/status-lists" else issuer.fetch_from(url)

    lists = StatusLists(ISSUER, fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    for _ in range(3):
        await lists.refresh()
        assert lists.state == "ok"
    assert caplog.text.count("were not fetched") == 1


async def test_an_unchanged_list_is_not_sent_again(issuer: Issuer, keys: KeySource) -> None:
    tags: list[str | None] = []

    def fetch_from(url: str) -> Callable[[str | None], Any]:
        async def fetch(etag: str | None) -> Fetched | None:
            tags.append(etag)
            return None if etag else Fetched(issuer.list_token().encode(), 'W/"1"')

        return issuer.fetch_from(url) if url == f"{ISSUER}/status-lists" else fetch

    lists = StatusLists(ISSUER, fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    await lists.refresh()
    await lists.refresh()
    assert tags == [None, 'W/"1"']
    assert lists.state == "ok"


class TaggedLists:
    """An issuer that names the entity tags of its lists, as Gatehouse does."""

    def __init__(self, issuer: Issuer) -> None:
        self.issuer = issuer
        self.named: Any = ['W/"1"']
        self.tag = 'W/"1"'
        self.away = False
        self.fetched = 0

    def fetch_from(self, url: str) -> Callable[[str | None], Any]:
        async def fetch_names(_: str | None) -> Fetched:
            if self.away:
                raise FetchFailed("away")
            names = {"status_lists": [LIST], "etags": self.named}
            return Fetched(json.dumps(names).encode(), None)

        async def fetch_list(etag: str | None) -> Fetched | None:
            self.fetched += 1
            return None if etag == self.tag else Fetched(self.issuer.list_token().encode(), self.tag)

        return fetch_names if url == f"{ISSUER}/status-lists" else fetch_list


@pytest.mark.divergence("D-71")
async def test_a_list_is_fetched_when_its_named_tag_is_new(issuer: Issuer, keys: KeySource) -> None:
    tagged = TaggedLists(issuer)
    lists = StatusLists(ISSUER, tagged.fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    for _ in range(3):
        await lists.refresh()
    assert tagged.fetched == 1
    issuer.revoke(7)
    tagged.named = ['W/"2"']
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) is None, "this process of the issuer does not know it yet"
    tagged.tag = 'W/"2"'
    await lists.refresh()
    await lists.refresh()
    assert await lists.refusal(StatusReference(LIST, 7)) == "revoked"
    assert tagged.fetched == 3


@pytest.mark.threat("T-017")
async def test_a_list_that_is_too_old_is_fetched_whatever_its_tag(
    issuer: Issuer, keys: KeySource, clock: FakeClock
) -> None:
    """The names are not signed: they can only delay what the age of a list limits."""
    tagged = TaggedLists(issuer)
    lists = StatusLists(ISSUER, tagged.fetch_from, keys, clock, max_age=900, fail_open=False)
    await lists.refresh()
    clock.advance(901)
    with pytest.raises(StatusUnavailable):
        await lists.refusal(StatusReference(LIST, 7))
    await lists.refresh()
    assert tagged.fetched == 2


@pytest.mark.parametrize("named", [None, [], ["a", "b"], [7], {"0": "a"}, "a"])
async def test_without_usable_tags_every_list_is_fetched(issuer: Issuer, keys: KeySource, named: Any) -> None:
    tagged = TaggedLists(issuer)
    lists = StatusLists(ISSUER, tagged.fetch_from, keys, issuer.clock, max_age=900, fail_open=False)
    await lists.refresh()
    tagged.named = named
    await lists.refresh()
    tagged.away = True
    await lists.refresh()
    assert tagged.fetched == 3


async def test_the_number_of_lists_is_limited(
    issuer: Issuer, keys: KeySource, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "MAX_LISTS", 2)
    lists = issuer.statuses(keys)
    third = f"{ISSUER}/status-lists/00000000000c"
    issuer.lists |= {OTHER_LIST: bytearray(8), third: bytearray(8)}
    for uri in (LIST, OTHER_LIST, LIST, third, LIST):
        assert await lists.refusal(StatusReference(uri, 1)) is None
        clock.advance(1)
    assert issuer.list_fetches == [LIST, OTHER_LIST, third]


async def test_of_too_many_lists_the_newest_are_followed(
    issuer: Issuer, keys: KeySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The issuer names the oldest first."""
    monkeypatch.setattr(status_names, "MAX_LISTS", 2)
    newest = [OTHER_LIST, f"{ISSUER}/status-lists/00000000000c"]
    issuer.lists |= dict.fromkeys(newest, bytearray(8))
    await issuer.statuses(keys).refresh()
    assert issuer.list_fetches == [f"{ISSUER}/status-lists", *newest]


async def test_polling_is_frequent_until_the_lists_are_known(issuer: Issuer, keys: KeySource) -> None:
    lists = issuer.statuses(keys)
    pauses: list[float] = []

    class Enough(Exception):
        pass

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        issuer.away = len(pauses) < 2
        if len(pauses) == 3:
            raise Enough

    issuer.away = True
    with pytest.raises(Enough):
        await lists.poll(5, sleep)
    assert pauses == [FIRST_RETRY, FIRST_RETRY, 5]
