"""Signing keys and peppers, with a copied, altered or unavailable database."""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from sqlalchemy import URL, delete, select, update
from sqlalchemy.exc import SQLAlchemyError
from support.authserver import ISSUER, AuthServer, settings_in
from support.clock import FakeClock
from support.kill_points import Job, run_together

from gatehouse.authserver.db.models import PepperRow, SigningKeyRow
from gatehouse.authserver.keys.encryption import SealingKey, create_sealing_key, load_sealing_key
from gatehouse.authserver.keys.sealed_keys import NoUsableKey, SealedKeys
from gatehouse.authserver.keys.store import KeyStore, ensure_keys
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.settings import InvalidSettings


@pytest.fixture
def sealing_key(authserver: AuthServer) -> SealingKey:
    return load_sealing_key(authserver.settings)


def key_store(server: AuthServer, sealing_key: SealingKey, **changes: Any) -> KeyStore:
    """Return a store that has loaded nothing yet."""
    return KeyStore(server.services.database, SealedKeys(lambda: sealing_key, ISSUER), **changes)


def published(store: KeyStore) -> set[str]:
    return set(parse_key_set(store.ring().jwks))


def insert_key(server: AuthServer, kid: str, sealed: bytes) -> None:
    """Insert a row, as anyone with write access to the database can."""
    now = int(server.clock()) + 10
    with server.services.database.write() as session:
        session.add(SigningKeyRow(kid=kid, alg="ES256", sealed=sealed, created_at=now, state="next", published_at=now))


def add_key(server: AuthServer, sealing_key: SealingKey, **purpose: Any) -> SigningKey:
    """Insert a signing key; `purpose` overrides parts of the purpose that it is sealed for."""
    key = SigningKey.generate("ES256")
    said = {"issuer": ISSUER, "kid": key.kid, "alg": "ES256", **purpose}
    sealed = sealing_key.seal(key.private_jwk(), "signing_key", said["issuer"], said["kid"], said["alg"])
    insert_key(server, key.kid, sealed)
    return key


@pytest.mark.both_databases
def test_init_again_keeps_the_signing_key_and_the_pepper(authserver: AuthServer, sealing_key: SealingKey) -> None:
    before = key_store(authserver, sealing_key).ring()
    with authserver.services.database.write() as session:
        assert ensure_keys(session, sealing_key, ISSUER, "ES256", authserver.clock) == []
    after = key_store(authserver, sealing_key).ring()
    assert (after.jwks, after.peppers) == (before.jwks, before.peppers)


@pytest.mark.both_databases
def test_another_algorithm_gets_a_next_key_and_the_old_one_keeps_signing(
    authserver: AuthServer, sealing_key: SealingKey
) -> None:
    old = key_store(authserver, sealing_key).ring().signing_key.kid
    with authserver.services.database.write() as session:
        [new] = ensure_keys(session, sealing_key, ISSUER, "RS256", authserver.clock)
        assert ensure_keys(session, sealing_key, ISSUER, "RS256", authserver.clock) == []
    store = key_store(authserver, sealing_key)
    assert store.ring().signing_key.kid == old, "cached key sets do not contain the new key yet"
    assert published(store) == {old, new}


@pytest.mark.both_databases
def test_processes_that_create_keys_concurrently_end_with_one_set(authserver: AuthServer, tmp_path: Path) -> None:
    settings, workers = settings_in(tmp_path / "race"), 4
    together = Barrier(workers)
    with authserver.services.database.write() as session:
        session.execute(delete(SigningKeyRow))
        session.execute(delete(PepperRow))

    def make(_: int) -> tuple[bool, int]:
        together.wait()
        created = create_sealing_key(settings)
        with authserver.services.database.write() as session:
            return created, len(ensure_keys(session, load_sealing_key(settings), ISSUER, "ES256", authserver.clock))

    with ThreadPoolExecutor(workers) as pool:
        results = list(pool.map(make, range(workers)))
    assert sum(created for created, _ in results) == 1
    assert sum(made for _, made in results) == 1
    ring = key_store(authserver, load_sealing_key(settings)).ring()
    assert len(parse_key_set(ring.jwks)) == len(ring.peppers) == 1


@pytest.mark.both_databases
def test_two_concurrent_inits_succeed_with_one_key(tmp_path: Path, empty_database: URL) -> None:
    environment = {
        "AUTHSERVER_DATABASE_URL": empty_database.render_as_string(hide_password=False),
        "AUTHSERVER_KEYS_DIR": str(tmp_path / "keys"),
    }
    files = [tmp_path / name for name in ("first", "second")]
    command = ["init", "--output", "json"]
    inits = run_together(*(Job(command, environment, str(tmp_path), str(file)) for file in files))
    outputs = [file.read_text() for file in files]
    assert [init.code for init in inits] == [0, 0], inits
    assert sum('"signing_key": "created' in output for output in outputs) == 1
    assert sum('"sealing_key": "created"' in output for output in outputs) == 1


@pytest.mark.divergence("D-53")
@pytest.mark.both_databases
def test_a_key_sealed_with_this_key_is_published_and_the_active_one_signs(
    authserver: AuthServer, sealing_key: SealingKey
) -> None:
    first = key_store(authserver, sealing_key).ring().signing_key.kid
    added = add_key(authserver, sealing_key)
    store = key_store(authserver, sealing_key)
    assert published(store) == {first, added.kid}
    assert store.ring().signing_key.kid == first


def insert_foreign(server: AuthServer, sealing_key: SealingKey) -> None:
    add_key(server, SealingKey(os.urandom(32)))


def insert_for_another_issuer(server: AuthServer, sealing_key: SealingKey) -> None:
    add_key(server, sealing_key, issuer="https://staging.example.com")


def insert_under_another_kid(server: AuthServer, sealing_key: SealingKey) -> None:
    add_key(server, sealing_key, kid="another")


def insert_copy(server: AuthServer, sealing_key: SealingKey) -> None:
    with server.services.database.read() as session:
        row = session.scalars(select(SigningKeyRow)).one()
    insert_key(server, "copy", row.sealed)


def insert_unsealed(server: AuthServer, sealing_key: SealingKey) -> None:
    key = SigningKey.generate("ES256")
    insert_key(server, key.kid, key.private_jwk())


def insert_a_sealed_pepper(server: AuthServer, sealing_key: SealingKey) -> None:
    with server.services.database.read() as session:
        pepper = session.scalars(select(PepperRow)).one()
    insert_key(server, pepper.pepper_id, pepper.sealed)


@pytest.mark.threat("T-081")
@pytest.mark.parametrize(
    "tamper",
    [
        insert_foreign,
        insert_for_another_issuer,
        insert_under_another_kid,
        insert_copy,
        insert_unsealed,
        insert_a_sealed_pepper,
    ],
)
def test_an_undecryptable_row_is_neither_published_nor_used(
    authserver: AuthServer, sealing_key: SealingKey, tamper: Callable[[AuthServer, SealingKey], None]
) -> None:
    """Write access to the database must not be enough to get a key trusted."""
    before = key_store(authserver, sealing_key).ring()
    tamper(authserver, sealing_key)
    after = key_store(authserver, sealing_key).ring()
    assert after.jwks == before.jwks
    assert after.signing_key.kid == before.signing_key.kid


def test_without_a_decryptable_row_there_is_no_key_ring(authserver: AuthServer, sealing_key: SealingKey) -> None:
    assert key_store(authserver, sealing_key).ring()
    with authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).values(alg="RS256"))
    with pytest.raises(NoUsableKey, match="Restore that one"):
        key_store(authserver, sealing_key).ring()


def test_without_an_active_key_the_error_names_init(authserver: AuthServer, sealing_key: SealingKey) -> None:
    assert key_store(authserver, sealing_key).ring()
    with authserver.services.database.write() as session:
        session.execute(delete(SigningKeyRow))
    with pytest.raises(NoUsableKey, match="Run: authserver init"):
        key_store(authserver, sealing_key).ring()


def test_with_another_sealing_key_no_row_decrypts(authserver: AuthServer, sealing_key: SealingKey) -> None:
    assert key_store(authserver, sealing_key).ring()
    another = SealingKey(os.urandom(32))
    with pytest.raises(NoUsableKey, match="Restore that one"):
        key_store(authserver, another).ring()
    with pytest.raises(NoUsableKey, match="Restore that one"), authserver.services.database.write() as session:
        ensure_keys(session, another, ISSUER, "ES256", authserver.clock)


@pytest.mark.parametrize("failure", [InvalidSettings("gone"), PermissionError()])
def test_loaded_keys_stay_in_use_if_the_sealing_key_becomes_unreadable(
    authserver: AuthServer, sealing_key: SealingKey, failure: Exception
) -> None:
    """An undecryptable row makes the process load the sealing key again, which may have been rotated."""
    reads: list[None] = []

    def load() -> SealingKey:
        reads.append(None)
        if len(reads) > 1:
            raise failure
        return sealing_key

    store = KeyStore(authserver.services.database, SealedKeys(load, ISSUER))
    before = published(key_store(authserver, sealing_key))
    insert_key(authserver, "undecryptable", b"\x01" + bytes(60))
    assert published(store) == before
    assert len(reads) == 2


def test_a_moved_pepper_does_not_decrypt(authserver: AuthServer, sealing_key: SealingKey) -> None:
    with authserver.services.database.write() as session:
        row = session.scalars(select(PepperRow)).one()
        session.add(PepperRow(pepper_id="pep_moved", sealed=row.sealed, created_at=row.created_at + 10))
        known = row.pepper_id
    ring = key_store(authserver, sealing_key).ring()
    assert set(ring.peppers) == {known}
    assert ring.newest_pepper == known


@pytest.mark.threat("T-080")
def test_the_key_ring_shows_no_private_key_and_no_pepper(authserver: AuthServer) -> None:
    ring = authserver.services.keys.ring()
    assert b'"d"' not in ring.jwks
    [pepper] = ring.peppers.values()
    assert repr(pepper) not in repr(ring)


@pytest.mark.both_databases
def test_the_last_key_ring_stays_in_use_during_a_database_outage(
    authserver: AuthServer, sealing_key: SealingKey, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    store = key_store(authserver, sealing_key, monotonic=clock)
    good = store.ring()
    added = add_key(authserver, sealing_key)
    clock.advance(1)
    assert added.kid in published(store), "the store loads the keys again after a second"
    authserver.take_database_away()
    with caplog.at_level("WARNING"):
        for _ in range(2):
            clock.advance(3600)
            assert set(parse_key_set(store.ring().jwks)) == {good.signing_key.kid, added.kid}
    assert caplog.text.count("the last ones stay in use") == 1, "one line for an outage, however long it lasts"


def test_a_store_that_never_reached_the_database_has_no_key_ring(
    authserver: AuthServer, sealing_key: SealingKey
) -> None:
    assert key_store(authserver, sealing_key).ring()
    authserver.take_database_away()
    with pytest.raises(SQLAlchemyError):
        key_store(authserver, sealing_key).ring()


def test_a_private_key_is_parsed_once(authserver: AuthServer, sealing_key: SealingKey) -> None:
    """Each process loads the rows once a second. Parsing an RSA key takes 50 ms, which requests would wait for."""
    first, second = (key_store(authserver, sealing_key).ring().signing_key for _ in range(2))
    assert first.kid == second.kid
    assert first.key is second.key
