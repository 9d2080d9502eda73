"""Attacks on the revocation of tokens, keys and clients. Each test cites the source of the attack or the rule."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from sqlalchemy import URL
from support.authserver import AuthServer
from support.clock import FakeClock
from support.transfer import FullInstallation, Moved, export_of

from gatehouse.authserver.clients.registration import set_disabled
from gatehouse.authserver.tokens.issue import parse_jti
from gatehouse.authserver.tokens.status_lists import revoke_token
from gatehouse.shared.protocol.jws import read_header, read_unverified_claims, verify
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.status_list import MAX_LENGTH, PATH, WINDOW, decode, is_set

DAY = 86400


def published_bit(server: AuthServer, jti: str) -> bool:
    """Return a token's bit as a resource server that starts now reads it."""
    index = parse_jti(jti)
    assert index is not None
    document = server.http.get(f"{PATH}/{index.list_id}").text
    header = read_header(document, MAX_LENGTH)
    key = parse_key_set(server.http.get("/.well-known/jwks.json").data)[header.kid or ""]
    return is_set(decode(verify(document, header, key)["status_list"]), index.idx)


def new_client(server: AuthServer) -> tuple[str, str]:
    client, secret = server.create_client()
    return client.client_id, secret


def issue(server: AuthServer, basic: tuple[str, str]) -> str:
    """Return the jti of a new token."""
    jti: str = server.read_token(server.post_token(basic=basic))[1]["jti"]
    return jti


@pytest.mark.threat("T-086")
@pytest.mark.both_databases
def test_a_path_with_nul_is_an_unknown_list(authserver: AuthServer) -> None:
    """CWE-158: PostgreSQL refuses NUL in text, which was reported as a database outage (503, unrecorded)."""
    basic = new_client(authserver)
    index = parse_jti(issue(authserver, basic))
    assert index is not None
    assert authserver.http.get(f"{PATH}/{index.list_id}").status_code == 200
    for path in ("%00", f"{index.list_id}%00", "%FF%FE", "a" * 3000):
        response = authserver.http.get(f"{PATH}/{path}")
        assert (response.status_code, response.json["error"]) == (404, "invalid_request"), path


@pytest.mark.threat("T-083")
def test_a_shared_cache_must_revalidate_the_key_set(authserver: AuthServer) -> None:
    """RFC 9111 5.2.1: a cache may ignore request directives, but s-maxage (5.2.2.10) applies to every shared cache."""
    response = authserver.http.get("/.well-known/jwks.json")
    assert response.status_code == 200
    assert "s-maxage=0" in response.headers["Cache-Control"].split(", ")


@pytest.mark.threat("T-084")
def test_a_clock_jump_does_not_restore_a_revoked_token(authserver: AuthServer, clock: FakeClock) -> None:
    """RFC 7009 2.2: a revoked token stays invalid. Maintenance must not delete its bit as if it had expired."""
    basic = new_client(authserver)
    revoked, live = issue(authserver, basic), issue(authserver, basic)
    index = parse_jti(revoked)
    assert index is not None
    with authserver.services.database.write() as session:
        revoke_token(session, index.list_id, index.idx)
    assert (published_bit(authserver, revoked), published_bit(authserver, live)) == (True, False)
    clock.advance(DAY)
    authserver.services.maintenance.run_once()
    clock.advance(WINDOW - DAY)
    assert published_bit(authserver, revoked)
    assert published_bit(authserver, live), "the token could no longer be revoked"
    assert not published_bit(authserver, issue(authserver, new_client(authserver)))


@dataclass
class Restored:
    """An installation, and another one made from its export after the first had issued further tokens."""

    full: FullInstallation
    late: str
    """A token that the first issued after the export, and revoked."""
    again: FullInstallation


@pytest.fixture
def restored(authserver: AuthServer, empty_database: URL, tmp_path: Path) -> Iterator[Restored]:
    full = FullInstallation(authserver)
    document = export_of(authserver)
    client, secret = authserver.create_client()
    late = authserver.post_token(basic=(client.client_id, secret)).json["access_token"]
    with authserver.services.database.write() as session:
        set_disabled(session, authserver.admin, client.client_id, disabled=True)
    moved = Moved(empty_database, document, authserver.clock, authserver.settings.keys_dir)
    server = AuthServer(tmp_path / "restored", moved, authserver.clock)
    yield Restored(full, late, full.on(server))
    server.close()


@pytest.mark.threat("T-095")
@pytest.mark.both_databases
def test_a_token_issued_after_an_export_shares_no_status_bit(restored: Restored) -> None:
    """draft-ietf-oauth-status-list, "Double Allocation": no index is given twice. After an import, others got those of
    tokens that the old place had issued, and revoked, since the export: these became good again.
    """
    server = restored.again.server
    assert restored.again.is_active(restored.full.token)
    assert not restored.full.is_active(restored.late)
    late, kept = (str(read_unverified_claims(token)["jti"]) for token in (restored.late, restored.full.token))
    assert not published_bit(server, kept)
    given = [parse_jti(issue(server, new_client(server))) for _ in range(4)]
    assert parse_jti(late) not in given
    assert not restored.again.is_active(restored.late)
    assert published_bit(server, late), "the token could not be revoked here"
