"""The published key set (RFC 7517 5)."""

import pytest
from sqlalchemy import update
from support.authserver import AuthServer
from support.http_client import http_client

from gatehouse.authserver.app import build_app, close_services, create_services
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.shared.protocol.key_sets import parse_key_set

PATH = "/.well-known/jwks.json"


def test_the_key_set_contains_only_public_keys(authserver: AuthServer) -> None:
    response = authserver.http.get(PATH)
    assert response.status_code == 200
    assert response.content_type == "application/jwk-set+json"
    [jwk] = response.json["keys"]
    assert jwk.keys() == {"kty", "crv", "x", "y", "kid", "alg", "use"}
    assert (jwk["kty"], jwk["crv"], jwk["alg"], jwk["use"]) == ("EC", "P-256", "ES256", "sig")
    [key] = parse_key_set(response.data).values()
    assert jwk["kid"] == key.thumbprint


def test_the_key_set_may_be_cached_for_five_minutes(authserver: AuthServer) -> None:
    headers = authserver.http.get(PATH).headers
    assert headers["Cache-Control"] == "public, max-age=300, s-maxage=0"
    assert headers["ETag"] == authserver.http.get(PATH).headers["ETag"]


@pytest.mark.parametrize(
    "known", ["{etag}", "W/{etag}", '"other", {etag}', pytest.param("*", id="any (RFC 9110 13.1.2)")]
)
def test_a_matching_entity_tag_gets_304_and_no_body(authserver: AuthServer, known: str) -> None:
    etag = authserver.http.get(PATH).headers["ETag"]
    response = authserver.http.get(PATH, headers={"If-None-Match": known.format(etag=etag)})
    assert response.status_code == 304
    assert response.data == b""
    assert (response.headers["ETag"], response.headers["Cache-Control"]) == (etag, "public, max-age=300, s-maxage=0")


@pytest.mark.parametrize("known", ['"other"', "", '"other, {bare}"'])
def test_another_entity_tag_gets_the_key_set(authserver: AuthServer, known: str) -> None:
    first = authserver.http.get(PATH)
    bare = first.headers["ETag"].strip('"')
    response = authserver.http.get(PATH, headers={"If-None-Match": known.format(bare=bare)})
    assert (response.status_code, response.data) == (200, first.data)


def test_a_very_long_list_of_entity_tags_is_not_parsed(authserver: AuthServer) -> None:
    """CWE-407: parsing a megabyte of commas takes a second, and anybody may send it, without credentials."""
    etag = authserver.http.get(PATH).headers["ETag"]
    for commas, status in ((100, 304), (1024, 200)):
        known = f"{',' * commas}{etag}"
        assert authserver.http.get(PATH, headers={"If-None-Match": known}).status_code == status


def test_without_a_usable_key_the_key_set_is_503_and_not_cached(authserver: AuthServer) -> None:
    assert authserver.http.get(PATH).status_code == 200
    with authserver.services.database.write() as session:
        session.execute(update(SigningKeyRow).values(sealed=b"\x01" + bytes(60)))
    services = create_services(authserver.settings, authserver.clock)
    response = http_client(build_app(services)).get(PATH)
    close_services(services)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "2"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.json["error"] == "temporarily_unavailable"
