"""Status lists of the authorization server: revocation, publication and pruning."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy import delete, event, func, select, text
from support.authserver import ISSUER, RESOURCE, AuthServer
from support.clock import FakeClock
from support.status_lists import bit, change_client, indices_of, paused_at_a_statement
from werkzeug.test import TestResponse

from gatehouse.authserver.clients.registry import Client, load_client
from gatehouse.authserver.db.models import RevokedTokenRow, StatusBlockRow, StatusListRow
from gatehouse.authserver.tokens.issue import MIN_BLOCK, Index
from gatehouse.authserver.tokens.reservations import BLOCK_LIFETIME, MAX_BLOCK, SPARE, reserve_block
from gatehouse.authserver.tokens.status_lists import (
    StatusListPublisher,
    list_versions,
    load_bits,
    prune_status_lists,
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


def reload(server: AuthServer, client: Client) -> Client:
    with server.services.database.read() as session:
        loaded = load_client(session.connection(), client.client_id)
    assert loaded is not None
    return loaded


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
    assert response.headers["ETag"] == first.etag, "every process publishes the same tag for the same version"
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
    for find in (partial(publisher.find, list_id, key), partial(publisher.etags, key)):
        with pytest.raises(MustWait):
            find(wait=False)
    assert publisher.etags(key) == publisher.etags(key, wait=False)
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


def test_the_issuer_names_its_lists_and_their_entity_tags(authserver: AuthServer, clock: FakeClock) -> None:
    """A resource server fetches only those whose tags are new."""
    client, secret = authserver.create_client()
    uri = issue(authserver, client, secret)["uri"]
    tags = set()
    for change in (lambda: None, lambda: change_client(authserver, client, disabled=True), lambda: clock.advance(60)):
        change()
        clock.advance(1)
        response = authserver.http.get("/status-lists")
        assert response.status_code == 200, response.text
        assert response.headers["Cache-Control"] == "no-cache"
        assert response.json == {"status_lists": [uri], "etags": [fetch(authserver, uri).headers["ETag"]]}
        tags.add(response.json["etags"][0])
    assert len(tags) == 3


def test_deleted_rows_of_expired_tokens_do_not_change_the_tag(authserver: AuthServer, clock: FakeClock) -> None:
    """Otherwise all resource servers would fetch all lists after each deletion."""
    client, secret = authserver.create_client()
    uri = issue(authserver, client, secret)["uri"]
    clock.advance(2 * (BLOCK_LIFETIME + MAX_LIFETIME))
    before = fetch(authserver, uri).headers["ETag"]
    with authserver.services.database.write() as session:
        prune_status_lists(session, int(clock()))
    publisher = StatusListPublisher(authserver.services.database, ISSUER, clock)
    published_again = publisher.find(uri.rpartition("/")[2], authserver.services.keys.ring().signing_key)
    assert published_again is not None
    assert published_again.etag == before


def test_lists_are_renewed_at_different_times(authserver: AuthServer, clock: FakeClock) -> None:
    """To sign hundreds of lists takes seconds."""
    with authserver.services.database.write() as session:
        for number in range(WINDOW):
            list_id = f"{number:012x}"
            session.add(StatusListRow(list_id=list_id, next_index=0, version=0, created_at=0, expires_at=0))
    publisher = StatusListPublisher(authserver.services.database, ISSUER, clock)
    key = authserver.services.keys.ring().signing_key
    before = publisher.etags(key)
    for renewed in (1, 1, 1):
        clock.advance(1)
        after = publisher.etags(key)
        assert len({*after.items()} - {*before.items()}) == renewed
        before = after


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
            return len(list_versions(session))

    first = reserve(LIST_SIZE - SPARE)
    assert known() == 1
    assert reserve(MAX_BLOCK) == first
    assert known() == 2
    assert reserve(SPARE - MAX_BLOCK) == first, "the full list's last index is used"
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
    for after in range(1, 6):
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


@pytest.mark.parametrize("missing", [0, 3], ids=["the first", "the last"])
def test_a_missing_block_is_published_as_set(authserver: AuthServer, missing: int) -> None:
    """Its tokens could not be revoked."""
    client, _ = authserver.create_client()
    with authserver.services.database.write() as session:
        blocks = [reserve_block(session, client.client_id, 8, int(authserver.clock())) for _ in range(4)]
        gone = blocks[missing]
        assert gone is not None
        session.execute(delete(StatusBlockRow).where(StatusBlockRow.start == gone.start))
    bits = [bit(authserver, Index(block.list_id, block.start + 7)) for block in blocks if block is not None]
    assert [number for number, is_set in enumerate(bits) if is_set] == [missing]


def test_only_the_revoked_blocks_of_a_list_are_read(authserver: AuthServer) -> None:
    """A list has tens of thousands of blocks, and each worker signs it every minute."""
    client, _ = authserver.create_client()
    with authserver.services.database.write() as session:
        block = reserve_block(session, client.client_id, MIN_BLOCK, 0)
        assert block is not None
    plans: list[str] = []
    engine = authserver.services.database.engine

    def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        if "revoked" in statement.partition("WHERE")[2] and "EXPLAIN" not in statement:
            prefix = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
            plans.append(str(connection.exec_driver_sql(f"{prefix}{statement}", parameters).all()))

    with authserver.services.database.read() as session:
        if engine.dialect.name == "postgresql":
            session.execute(text("SET LOCAL enable_seqscan = off"))
        event.listen(engine, "before_cursor_execute", explain)
        load_bits(session, block.list_id)
        event.remove(engine, "before_cursor_execute", explain)
    assert any("ix_status_block_revoked" in plan for plan in plans), plans
