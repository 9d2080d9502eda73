"""Status lists of the authorization server: reservation of indices, revocation, publication and pruning."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import event, func, select
from support.authserver import ISSUER, RESOURCE, AuthServer
from support.clock import FakeClock
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registration import delete_client, set_disabled
from gatehouse.authserver.clients.registry import Client, load_client
from gatehouse.authserver.db.models import RevokedTokenRow, StatusBlockRow, StatusListRow
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.tokens import status_lists
from gatehouse.authserver.tokens.issue import MIN_BLOCK, Index, StatusIndexAllocator, parse_jti
from gatehouse.authserver.tokens.status_lists import (
    BLOCK_LIFETIME,
    MAX_BLOCK,
    StatusListPublisher,
    list_ids,
    load_bits,
    prune_status_lists,
    reserve_block,
    revoke_client,
    revoke_token,
)
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import read_header, verify
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.status_list import LIFETIME, LIST_SIZE, MAX_LENGTH, WINDOW, decode, is_set
from gatehouse.shared.service.cache import MustWait

pytestmark = pytest.mark.both_databases


def change_client(server: AuthServer, client: Client, *, disabled: bool) -> Client:
    with server.services.database.write() as session:
        return set_disabled(session, server.admin, client.client_id, disabled=disabled)


def reload(server: AuthServer, client: Client) -> Client:
    with server.services.database.read() as session:
        loaded = load_client(session, client.client_id)
    assert loaded is not None
    return loaded


def indices_of(server: AuthServer) -> StatusIndexAllocator:
    """Return the allocator of another process."""
    return StatusIndexAllocator(server.services.database, server.clock)


def bit(server: AuthServer, index: Index) -> bool:
    with server.services.database.read() as session:
        return is_set(load_bits(session, index.list_id), index.idx)


def count_writes(server: AuthServer, action: Callable[[], Any]) -> int:
    """Return how many statements of an action change status lists."""
    statements: list[str] = []

    def remember(*arguments: Any) -> None:
        statements.append(arguments[2])

    event.listen(server.services.database.engine, "before_cursor_execute", remember)
    try:
        action()
    finally:
        event.remove(server.services.database.engine, "before_cursor_execute", remember)
    return sum(statement.startswith(("INSERT INTO status", "UPDATE status")) for statement in statements)


def fetch(server: AuthServer, uri: str, etag: str | None = None) -> TestResponse:
    headers = {"If-None-Match": etag} if etag else {}
    return server.http.get(uri.removeprefix(ISSUER), headers=headers)


def published(server: AuthServer, uri: str) -> dict[str, Any]:
    """Return the claims of a published list, verified as a resource server does."""
    response = fetch(server, uri)
    assert response.status_code == 200, response.text
    assert response.content_type == "application/statuslist+jwt"
    header = read_header(response.text, MAX_LENGTH)
    assert header.typ == "statuslist+jwt"
    keys = parse_key_set(server.http.get("/.well-known/jwks.json").data)
    return verify(response.text, header, keys[header.kid or ""])


def issue(server: AuthServer, client: Client, secret: str) -> dict[str, Any]:
    reference: dict[str, Any] = server.read_token(server.post_token(basic=(client.client_id, secret)))[1]
    return reference["status"]["status_list"] | {"jti": reference["jti"]}


def test_no_two_tokens_of_any_client_or_process_share_an_index(authserver: AuthServer) -> None:
    clients = [authserver.create_client()[0] for _ in range(3)]
    processes = [indices_of(authserver) for _ in range(2)]
    taken = [
        process.allocate(client, authserver.clock()) for client in clients for process in processes for _ in range(40)
    ]
    assert len(set(taken)) == len(taken) == 240


@pytest.mark.divergence("D-34")
def test_issuing_writes_once_for_a_block_of_tokens(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    indices.allocate(client, authserver.clock())
    assert (
        count_writes(authserver, lambda: [indices.allocate(client, authserver.clock()) for _ in range(MIN_BLOCK - 1)])
        == 0
    )
    assert count_writes(authserver, lambda: indices.allocate(client, authserver.clock())) > 0
    with authserver.services.database.read() as session:
        sizes = list(session.scalars(select(StatusBlockRow.size).order_by(StatusBlockRow.start)))
    assert sizes == [MIN_BLOCK, 2 * MIN_BLOCK]


def test_a_busy_client_gets_larger_blocks_up_to_the_maximum(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    for _ in range(4 * MAX_BLOCK):
        indices.allocate(client, authserver.clock())
    with authserver.services.database.read() as session:
        sizes = list(session.scalars(select(StatusBlockRow.size).order_by(StatusBlockRow.start)))
    assert sizes[0] == MIN_BLOCK
    assert set(sizes[-2:]) == {MAX_BLOCK}
    assert len(sizes) < 12


def test_a_block_is_used_for_an_hour_and_no_longer(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    first = indices.allocate(client, authserver.clock())
    clock.advance(BLOCK_LIFETIME - 1)
    assert indices.allocate(client, authserver.clock()) == Index(first.list_id, first.idx + 1)
    clock.advance(1)
    assert indices.allocate(client, authserver.clock()) == Index(first.list_id, first.idx + MIN_BLOCK)


@pytest.mark.only_on("sqlite")
def test_an_index_is_allocated_without_waiting_only_from_a_block(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices, now = indices_of(authserver), authserver.clock()
    with pytest.raises(MustWait):
        indices.allocate(client, now, wait=False)
    first = indices.allocate(client, now)
    assert indices.allocate(client, now, wait=False) == Index(first.list_id, first.idx + 1)
    for _ in range(MIN_BLOCK - 2):
        indices.allocate(client, now)
    with paused_at_a_statement(authserver, lambda: indices.allocate(client, now)), pytest.raises(MustWait):
        indices.allocate(client, now, wait=False)
    assert indices.allocate(client, now, wait=False).idx > first.idx


@contextmanager
def paused_at_a_statement(server: AuthServer, action: Callable[[], Any]) -> Iterator[None]:
    """Run an action in a thread that stops before its first statement, until the block ends."""
    paused, resume = threading.Event(), threading.Event()

    def pause(*_: Any) -> None:
        paused.set()
        resume.wait()

    event.listen(server.services.database.engine, "before_cursor_execute", pause)
    thread = threading.Thread(target=action)
    thread.start()
    try:
        paused.wait()
        yield
    finally:
        resume.set()
        thread.join()
        event.remove(server.services.database.engine, "before_cursor_execute", pause)


def test_threads_that_wait_for_a_block_share_one(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices, taken = indices_of(authserver), []
    threads = [
        threading.Thread(target=lambda: taken.append(indices.allocate(client, authserver.clock()))) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(index.idx for index in taken) == list(range(8))
    with authserver.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(StatusBlockRow)) == 1


def test_the_number_of_clients_with_blocks_in_memory_is_limited(authserver: AuthServer) -> None:
    indices = StatusIndexAllocator(authserver.services.database, authserver.clock, clients=1)
    first, second = (authserver.create_client()[0] for _ in range(2))
    taken = [indices.allocate(client, authserver.clock()) for client in (first, first, second, first)]
    assert [index.idx for index in taken] == [0, 1, MIN_BLOCK, 2 * MIN_BLOCK]


@pytest.mark.divergence("D-34")
def test_disabling_a_client_sets_its_bits_and_no_others(authserver: AuthServer) -> None:
    client, other = authserver.create_client()[0], authserver.create_client()[0]
    indices = indices_of(authserver)
    own = [indices.allocate(client, authserver.clock()) for _ in range(2 * MIN_BLOCK)]
    others = [indices.allocate(other, authserver.clock()) for _ in range(2 * MIN_BLOCK)]
    assert not any(bit(authserver, index) for index in own + others)
    change_client(authserver, client, disabled=True)
    assert all(bit(authserver, index) for index in own)
    assert not any(bit(authserver, index) for index in others)


@pytest.mark.threat("T-071")
def test_a_token_from_a_block_held_before_disabling_is_revoked(authserver: AuthServer) -> None:
    """A process with a cached client issues tokens for up to a second, each with its bit set."""
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    assert not bit(authserver, indices.allocate(client, authserver.clock()))
    change_client(authserver, client, disabled=True)
    assert bit(authserver, indices.allocate(client, authserver.clock()))


def test_enabling_a_client_restores_no_token_and_voids_held_blocks(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    before = indices.allocate(client, authserver.clock())
    change_client(authserver, client, disabled=True)
    enabled = change_client(authserver, client, disabled=False)
    assert enabled.token_epoch == client.token_epoch + 2
    after = indices.allocate(enabled, authserver.clock())
    assert (bit(authserver, before), bit(authserver, after)) == (True, False)
    assert indices.allocate(client, authserver.clock()).idx == after.idx + 1, (
        "a stale cached client voids no newer block"
    )


@pytest.mark.threat("T-071")
@pytest.mark.parametrize("end", ["disable", "delete"])
def test_no_block_is_reserved_for_a_disabled_or_deleted_client(authserver: AuthServer, end: str) -> None:
    """The race between authentication and issuance: the reservation reads the current state, not the cached client."""
    client, _ = authserver.create_client()
    held = indices_of(authserver).allocate(client, authserver.clock())
    with authserver.services.database.write() as session:
        if end == "disable":
            set_disabled(session, authserver.admin, client.client_id, disabled=True)
        else:
            delete_client(session, authserver.admin, client.client_id)
    with pytest.raises(OAuthError) as refusal:
        indices_of(authserver).allocate(client, authserver.clock())
    assert refusal.value.error == "invalid_client"
    assert bit(authserver, held)


@pytest.mark.threat("T-071")
def test_a_reservation_and_a_concurrent_disabling_leave_no_active_token(authserver: AuthServer) -> None:
    """Either the block exists when the tokens are revoked, or the reservation sees that the client is disabled."""
    for _ in range(8):
        client, _ = authserver.create_client()
        taken: list[Index] = []
        start = threading.Barrier(2)

        def reserve(client: Client = client, taken: list[Index] = taken, start: threading.Barrier = start) -> None:
            start.wait()
            try:
                taken.append(indices_of(authserver).allocate(client, authserver.clock()))
            except OAuthError:
                return

        thread = threading.Thread(target=reserve)
        thread.start()
        start.wait()
        change_client(authserver, client, disabled=True)
        thread.join()
        assert all(bit(authserver, index) for index in taken)


def test_a_single_token_is_revoked_by_list_and_index(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)
    first, second = indices.allocate(client, authserver.clock()), indices.allocate(client, authserver.clock())
    for _ in range(2):
        with authserver.services.database.write() as session:
            assert revoke_token(session, first.list_id, first.idx) == client.client_id
    assert (bit(authserver, first), bit(authserver, second)) == (True, False)
    with authserver.services.database.write() as session:
        assert revoke_token(session, first.list_id, LIST_SIZE - 1) is None
        assert revoke_token(session, "0" * 12, 0) is None


def test_a_revoked_token_appears_in_a_list_that_was_signed_before(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    index = indices_of(authserver).allocate(client, authserver.clock())
    uri = f"{ISSUER}/status-lists/{index.list_id}"
    assert not is_set(decode(published(authserver, uri)["status_list"]), index.idx)
    with authserver.services.database.write() as session:
        revoke_token(session, index.list_id, index.idx)
    clock.advance(1)
    assert is_set(decode(published(authserver, uri)["status_list"]), index.idx)


def test_a_jti_carries_its_list_and_index(authserver: AuthServer) -> None:
    index = Index("0123456789ab", 70_000)
    assert parse_jti(index.new_jti()) == index
    assert index.new_jti() != index.new_jti()
    for jti in ("", "a", "0123456789ab.1", f"0123456789ab.01.{'a' * 22}", f"0123456789AB.1.{'a' * 22}"):
        assert parse_jti(jti) is None


@pytest.mark.divergence("D-33")
def test_a_token_refers_to_a_list_that_is_published_and_signed(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    reference = issue(authserver, client, secret)
    claims = published(authserver, reference["uri"])
    bits = decode(claims.pop("status_list"))
    assert len(bits) * 8 == LIST_SIZE
    assert not is_set(bits, reference["idx"])
    now = int(clock())
    assert claims == {"sub": reference["uri"], "iat": now, "exp": now + LIFETIME, "ttl": 5}


@pytest.mark.only_on("sqlite")
def test_an_unchanged_list_is_not_sent_again_until_it_is_renewed(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    uri = issue(authserver, client, secret)["uri"]
    publisher = StatusListPublisher(authserver.services.database, ISSUER, clock, monotonic=clock)
    key = authserver.services.keys.ring().signing_key
    list_id = uri.rpartition("/")[2]
    first = publisher.find(list_id, key)
    assert first is not None
    assert publisher.find(list_id, key) is first, "signed once"
    response = fetch(authserver, uri)
    assert response.headers["Cache-Control"] == "no-cache"
    assert response.headers["ETag"] == first.etag, "every process publishes the same tag for the same bits"
    assert fetch(authserver, uri, first.etag).status_code == 304
    change_client(authserver, client, disabled=True)
    clock.advance(1)
    changed = publisher.find(list_id, key)
    assert changed is not None
    assert changed.etag != first.etag
    clock.advance(WINDOW)
    renewed = publisher.find(list_id, key)
    assert renewed is not None
    assert renewed.etag != changed.etag, "its iat shows its age"


@pytest.mark.only_on("sqlite")
def test_a_list_is_found_without_waiting_only_if_it_is_signed(authserver: AuthServer, clock: FakeClock) -> None:
    client, secret = authserver.create_client()
    list_id = issue(authserver, client, secret)["uri"].rpartition("/")[2]
    publisher = StatusListPublisher(authserver.services.database, ISSUER, clock, monotonic=FakeClock())
    key = authserver.services.keys.ring().signing_key
    for find in (partial(publisher.find, list_id, key), publisher.uris):
        with pytest.raises(MustWait):
            find(wait=False)
    assert publisher.uris() == publisher.uris(wait=False)
    first = publisher.find(list_id, key)
    assert publisher.find(list_id, key, wait=False) is first
    clock.advance(WINDOW)
    with pytest.raises(MustWait):
        publisher.find(list_id, key, wait=False)
    with paused_at_a_statement(authserver, lambda: publisher.find(list_id, key)), pytest.raises(MustWait):
        publisher.find(list_id, key, wait=False)
    assert publisher.find(list_id, key, wait=False) is not first


@pytest.mark.only_on("sqlite")
def test_the_number_of_signed_lists_in_memory_is_limited(authserver: AuthServer) -> None:
    key, ids = authserver.services.keys.ring().signing_key, ["0" * 12, "1" * 12]
    with authserver.services.database.write() as session:
        for list_id in ids:
            session.add(StatusListRow(list_id=list_id, next_index=0, version=0, created_at=0, expires_at=0))
    publisher = StatusListPublisher(authserver.services.database, ISSUER, authserver.clock, signed_lists=1)
    first = publisher.find(ids[0], key)
    assert publisher.find(ids[0], key) is first
    publisher.find(ids[1], key)
    assert publisher.find(ids[0], key) is not first


def test_the_issuer_names_its_lists(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    uri = issue(authserver, client, secret)["uri"]
    response = authserver.http.get("/status-lists")
    assert response.json == {"status_lists": [uri]}
    assert response.headers["Cache-Control"] == "no-cache"


@pytest.mark.parametrize("list_id", ["0123456789ab", "x", "..%2Ftoken", "0123456789AB", "%00", "%FF"])
def test_an_unknown_list_is_a_404(authserver: AuthServer, list_id: str) -> None:
    client, secret = authserver.create_client()
    assert fetch(authserver, issue(authserver, client, secret)["uri"]).status_code == 200
    response = authserver.http.get(f"/status-lists/{list_id}")
    assert (response.status_code, response.json["error"]) == (404, "invalid_request")


def test_no_list_is_served_during_a_database_outage(authserver: AuthServer, clock: FakeClock) -> None:
    """The list may have changed; each resource server decides how long it continues without an update."""
    client, secret = authserver.create_client()
    uri = issue(authserver, client, secret)["uri"]
    assert fetch(authserver, uri).status_code == 200
    authserver.take_database_away()
    clock.advance(1e9)
    for path in (uri, "/status-lists"):
        response = fetch(authserver, path)
        assert (response.status_code, response.json["error"]) == (503, "temporarily_unavailable")


def test_the_next_list_is_published_before_the_last_is_full(authserver: AuthServer) -> None:
    client, _ = authserver.create_client()
    now = int(authserver.clock())

    def reserve(size: int) -> str:
        with authserver.services.database.write() as session:
            block = reserve_block(session, client.client_id, size, now)
        assert block is not None
        return block.list_id

    def known() -> int:
        with authserver.services.database.read() as session:
            return len(list_ids(session))

    first = reserve(LIST_SIZE - status_lists.SPARE)
    assert known() == 1
    assert reserve(MAX_BLOCK) == first
    assert known() == 2
    assert reserve(status_lists.SPARE - MAX_BLOCK) == first, "the full list's last index is used"
    assert reserve(1) != first


def test_only_the_rows_of_expired_tokens_are_pruned(authserver: AuthServer, clock: FakeClock) -> None:
    client, _ = authserver.create_client()
    indices = indices_of(authserver)

    def prune() -> tuple[int, int, int]:
        with authserver.services.database.write() as session:
            prune_status_lists(session, int(clock()))
        with authserver.services.database.read() as session:
            rows = (StatusListRow, StatusBlockRow, RevokedTokenRow)
            counts = [session.scalar(select(func.count()).select_from(row)) or 0 for row in rows]
        return counts[0], counts[1], counts[2]

    with authserver.services.database.write() as session:
        full = reserve_block(session, client.client_id, LIST_SIZE, int(clock()))
        assert full is not None
        revoke_token(session, full.list_id, 7)
    indices.allocate(client, authserver.clock())
    assert prune() == (2, 2, 1)
    last_token_expires = BLOCK_LIFETIME + MAX_LIFETIME + LEEWAY
    clock.advance(last_token_expires)
    assert prune() == (2, 2, 1)
    clock.advance(LEEWAY + 1)
    assert prune() == (1, 0, 0)
    assert not bit(authserver, indices.allocate(client, authserver.clock()))


def test_revoking_all_tokens_of_a_client_leaves_it_enabled(authserver: AuthServer) -> None:
    client, secret = authserver.create_client()
    before = issue(authserver, client, secret)
    with authserver.services.database.write() as session:
        revoke_client(session, client.client_id)
    assert is_set(decode(published(authserver, before["uri"])["status_list"]), before["idx"])
    after = indices_of(authserver).allocate(reload(authserver, client), authserver.clock())
    assert not bit(authserver, after)
    assert reload(authserver, client).grants.keys() == {RESOURCE}


def test_a_block_reserved_while_a_list_is_read_is_not_published_as_set(authserver: AuthServer) -> None:
    """Resource servers never clear a bit: one set by mistake would refuse valid tokens for hours."""
    client, _ = authserver.create_client()
    list_id = indices_of(authserver).allocate(client, authserver.clock()).list_id
    engine = authserver.services.database.engine
    for after in range(1, 4):
        statements: list[str] = []
        meanwhile: list[Index] = []

        def reserve(
            *arguments: Any, after: int = after, statements: list[str] = statements, meanwhile: list[Index] = meanwhile
        ) -> None:
            statements.append(arguments[2])
            if len(statements) == after:
                meanwhile.append(indices_of(authserver).allocate(client, authserver.clock()))

        with authserver.services.database.read() as session:
            event.listen(engine, "after_cursor_execute", reserve)
            bits = load_bits(session, list_id)
            event.remove(engine, "after_cursor_execute", reserve)
        [index] = meanwhile
        assert not is_set(bits, index.idx), f"reserved after: {statements[after - 1]}"
