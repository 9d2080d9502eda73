"""Attacks on the key sets of trusted issuers, which real servers on loopback publish.

Each test first sends a faultless token, and one with a new key that the issuer publishes or not.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.attacked_workloads import attacker, workload
from support.authserver import AuthServer
from support.document_server import JSON, Answer, DocumentServer
from support.platforms import Platform, kubernetes, oidc
from support.workloads import WorkloadClient

from gatehouse.authserver.workloads.key_state import last_failure
from gatehouse.authserver.workloads.registry import KeyLocation, load_issuers
from gatehouse.shared.protocol.jws import SigningKey

HOUR = 3600
BEARER = "eyJhbGciOiJSUzI1NiJ9.eyJhdWQiOiJhcGkifQ.c2lnbmF0dXJl"
STALE = "platform token: no key of the issuer is known, or the key set is too old"


@pytest.fixture
def publisher() -> Iterator[DocumentServer]:
    server = DocumentServer()
    yield server
    server.close()


def at(url: str) -> KeyLocation:
    return KeyLocation(discovery=False, jwks_uri=url, ca_file=None, bearer_token_file=None)


def published(server: AuthServer, publisher: DocumentServer, platform: Platform) -> WorkloadClient:
    """Return a client of a platform whose keys are fetched from the publisher, and are due in a minute."""
    publisher.answers["/jwks"] = Answer(platform.jwks())
    return WorkloadClient(server, platform, location=at(f"{publisher.url}/jwks"))


def refused(client: WorkloadClient, key: SigningKey) -> None:
    """Check that a token of a key is refused, because the issuer has no such key."""
    check_refusal(client, key, f"platform token: the issuer has no key with the kid {key.kid[:100]} for {key.alg}")


def check_refusal(client: WorkloadClient, key: SigningKey, reason: str) -> None:
    """Check that a token of a key is refused. The reason ends with that of a failed fetch."""
    response = client.post("grant", client.platform.token(key=key))
    with client.server.services.database.connect() as connection:
        issuers = [one for one in load_issuers(connection) if one.issuer == client.platform.issuer]
    failures = [f"; {one.name}: {failed}" for one in issuers if (failed := last_failure(one, client.server.clock()))]
    client.check_refusal("grant", response, "".join([reason, *failures]))


def keys(*members: dict[str, Any]) -> bytes:
    return json.dumps({"keys": members}).encode()


def hostile_sets() -> Iterator[Any]:
    """Return what makes a response of the issuer of the good and the evil key."""

    def case(name: str, make: Any) -> Any:
        return pytest.param(make, id=name)

    yield case("empty", lambda good, evil: Answer(keys()))
    yield case("no-member", lambda good, evil: Answer(b"{}"))
    yield case("null", lambda good, evil: Answer(b"null"))
    yield case("array", lambda good, evil: Answer(json.dumps([good, evil]).encode()))
    yield case("keys-as-object", lambda good, evil: Answer(json.dumps({"keys": {"0": evil}}).encode()))
    yield case("not-an-object", lambda good, evil: Answer(json.dumps({"keys": [evil, "x"]}).encode()))
    yield case("not-json", lambda good, evil: Answer(keys(evil) + b"x"))
    yield case("keys-twice", lambda good, evil: Answer(b'{"keys": [], ' + keys(evil)[1:]))
    yield case("utf-16", lambda good, evil: Answer(keys(evil).decode().encode("utf-16")))
    yield case("byte-order-mark", lambda good, evil: Answer(b"\xef\xbb\xbf" + keys(evil)))
    yield case("private-key", lambda good, evil: Answer(keys(good, {**evil, "d": "AQAB"})))
    yield case("secret-key", lambda good, evil: Answer(keys(good, evil, {"kty": "oct", "k": "AAAA", "kid": "s"})))
    yield case("kid-twice", lambda good, evil: Answer(keys(good, {**evil, "kid": good["kid"]})))
    yield case("key-twice", lambda good, evil: Answer(keys(evil, {**evil, "kid": "other"})))
    yield case("no-kid", lambda good, evil: Answer(keys({**evil, "kid": None})))
    yield case("kid-as-number", lambda good, evil: Answer(keys({**evil, "kid": 1})))
    yield case("long-kid", lambda good, evil: Answer(keys({**evil, "kid": "k" * 129})))
    yield case("for-encryption", lambda good, evil: Answer(keys({**evil, "use": "enc"})))
    yield case("other-operations", lambda good, evil: Answer(keys({**evil, "use": None, "key_ops": ["encrypt"]})))
    yield case("hmac", lambda good, evil: Answer(keys({**evil, "alg": "HS256"})))
    yield case("algorithm-of-another-type", lambda good, evil: Answer(keys({**evil, "alg": "ES256"})))
    yield case("exponent-1", lambda good, evil: Answer(keys({**evil, "e": "AQ"})))
    yield case("even-modulus", lambda good, evil: Answer(keys({**evil, "n": evil["n"][:-2] + "AA"})))
    yield case("short-modulus", lambda good, evil: Answer(keys({**evil, "n": evil["n"][:170]})))
    yield case("huge-modulus", lambda good, evil: Answer(keys({**evil, "n": evil["n"] * 3})))
    yield case("certificate-only", lambda good, evil: Answer(keys({"kid": evil["kid"], "x5c": ["MIIB"], "kty": "RSA"})))
    yield case("by-reference", lambda good, evil: Answer(keys({"kid": evil["kid"], "x5u": "https://evil.example"})))
    yield case("65-keys", lambda good, evil: Answer(keys(*[evil, *({"kty": "x"} for _ in range(64))])))
    yield case("65-KiB", lambda good, evil: Answer(keys({**evil, "x5c": ["A" * 65_536]})))
    yield case("deep", lambda good, evil: Answer(b'{"keys": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"))
    yield case("html", lambda good, evil: Answer(keys(evil), headers={"Content-Type": "text/html"}))
    yield case("no-type", lambda good, evil: Answer(keys(evil), headers={}))
    yield case("gzip", lambda good, evil: Answer(keys(evil), headers={**JSON, "Content-Encoding": "gzip"}))
    yield case("error", lambda good, evil: Answer(keys(evil), status=500))
    yield case("created", lambda good, evil: Answer(keys(evil), status=201))
    yield case("not-modified", lambda good, evil: Answer(b"", status=304))
    yield case("redirect", lambda good, evil: Answer(b"", status=302, headers={**JSON, "Location": "/evil"}))
    yield case("cut-off", lambda good, evil: Answer(keys(evil), headers={**JSON, "Content-Length": "99999"}))
    yield case("not-http", lambda good, evil: Answer(raw=[b"\x00\x01\x02"]))


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("make", list(hostile_sets()))
def test_a_hostile_key_set_replaces_no_good_one(authserver: AuthServer, publisher: DocumentServer, make: Any) -> None:
    """RFC 7517 5, RFC 8725 3.5, CWE-409, CWE-601: the keys in use stay in use, and none of the new ones is."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    evil = attacker(authserver.clock)
    good = client.platform.key.public_jwk()
    client.accepted("grant")
    publisher.answers["/evil"] = Answer(keys(evil.public_jwk()))
    publisher.answers["/jwks"] = make(good, evil.public_jwk())
    authserver.clock.advance(60)
    refused(client, evil)
    assert publisher.paths() == ["/jwks"]
    client.accepted("grant")
    publisher.answers["/jwks"] = Answer(client.platform.jwks(client.platform.rotate()))
    authserver.clock.advance(60)
    client.accepted("grant")
    assert publisher.paths() == ["/jwks"] * 2


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("use", ["sig", "x509-svid", "wit-svid", None])
def test_only_keys_for_jwt_svids_verify_them(
    authserver: AuthServer, publisher: DocumentServer, use: str | None
) -> None:
    """SPIFFE Trust Domain and Bundle 4.2.2: a key for X.509 certificates, or without a use, must be ignored."""
    client = workload(authserver, "spiffe", location=at(f"{publisher.url}/jwks"))
    evil, key = attacker(authserver.clock, "ES256"), client.platform.key
    client.accepted("grant")
    own = {**key.public_jwk(), "use": "jwt-svid"}
    publisher.answers["/jwks"] = Answer(
        json.dumps({"keys": [own, {**evil.public_jwk(), "use": use}], "spiffe_sequence": 2}).encode()
    )
    authserver.clock.advance(60)
    refused(client, evil)
    assert publisher.paths() == ["/jwks"]
    client.accepted("grant")


@pytest.mark.threat("T-201")
def test_a_key_that_another_issuer_begins_to_publish_is_refused_for_both(
    authserver: AuthServer, publisher: DocumentServer
) -> None:
    """The signature of such a key would not say which of two clusters of one name has signed."""
    first = workload(authserver)
    second = published(authserver, publisher, kubernetes(authserver.clock, name="two"))
    authserver.clock.advance(1)
    first.accepted("grant")
    second.accepted("grant")
    own, copied = second.platform.key, replace(first.platform.key, kid="copied")
    publisher.answers["/jwks"] = Answer(second.platform.jwks(own, copied))
    authserver.clock.advance(60)
    refused(second, attacker(authserver.clock))
    second.accepted("grant")
    kid = first.platform.key.kid[:100]
    first.refused(
        "grant", first.platform.token(), f"platform token: the issuer has no key with the kid {kid} for RS256"
    )
    refused(second, copied)
    publisher.answers["/jwks"] = Answer(second.platform.jwks(own))
    authserver.clock.advance(60)
    refused(second, attacker(authserver.clock))
    first.accepted("grant")
    second.accepted("grant")


@pytest.mark.threat("T-208")
def test_tokens_with_invented_keys_cause_one_fetch_a_minute(authserver: AuthServer, publisher: DocumentServer) -> None:
    """CWE-770: anybody can name a key that does not exist."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    client.accepted("grant")
    key = attacker(authserver.clock)
    for fetches in range(3):
        for number in range(20):
            refused(client, replace(key, kid=f"invented-{fetches}-{number}"))
            authserver.clock.advance(1)
        assert publisher.paths() == ["/jwks"] * fetches
        authserver.clock.advance(40)
    client.platform.rotate()
    publisher.answers["/jwks"] = Answer(client.platform.jwks())
    client.accepted("grant")
    assert publisher.paths() == ["/jwks"] * 3


@pytest.mark.threat("T-208")
@pytest.mark.parametrize("claim", ["iss", "jwks_uri", "jku", "x5u"])
def test_a_claim_of_a_token_is_never_fetched(authserver: AuthServer, publisher: DocumentServer, claim: str) -> None:
    """CWE-918: only addresses that an admin configured are fetched."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    client.accepted("grant")
    authserver.clock.advance(60)
    token = client.platform.token(key=attacker(authserver.clock), **{claim: f"{publisher.url}/evil"})
    response = client.post("grant", token)
    assert (response.status_code, response.json["error"]) == (400, "invalid_grant")
    assert set(publisher.paths()) == (set() if claim == "iss" else {"/jwks"})


@pytest.mark.threat("T-208")
def test_a_token_that_the_issuer_cannot_have_signed_causes_no_fetch(
    authserver: AuthServer, publisher: DocumentServer
) -> None:
    """CWE-770: it names a known key, or an algorithm that the issuer may not use."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    client.accepted("grant")
    authserver.clock.advance(60)
    evil, kid = attacker(authserver.clock), client.platform.key.kid
    forged = client.platform.token(key=evil, header={"kid": kid})
    client.refused("grant", forged, "platform token: signature does not match")
    other = client.platform.token(key=attacker(authserver.clock, "EdDSA"))
    client.refused("grant", other, "platform token: the issuer may not use the algorithm EdDSA")
    assert publisher.paths() == []


@pytest.mark.threat("T-207")
@pytest.mark.parametrize("is_up", [True, False])
def test_an_issuer_that_is_down_is_trusted_for_a_day(
    authserver: AuthServer, publisher: DocumentServer, is_up: bool
) -> None:
    """The last good keys outlast an hour, and not 25: by then, a key that was revoked meanwhile must not verify."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    client.accepted("grant")
    publisher.answers.clear()
    if not is_up:
        publisher.close()
    old, new = client.platform.key, client.platform.rotate()
    authserver.clock.advance(HOUR)
    refused(client, new)
    client.accepted("grant", client.platform.token(key=old))
    authserver.clock.advance(23 * HOUR)
    client.accepted("grant", client.platform.token(key=old))
    authserver.clock.advance(1)
    check_refusal(client, old, STALE)
    if is_up:
        publisher.answers["/jwks"] = Answer(client.platform.jwks(new))
        authserver.clock.advance(60)
        client.accepted("grant")
        refused(client, old)


@pytest.mark.threat("T-084", "T-207")
def test_a_clock_jump_does_not_prolong_the_trust_in_a_key(authserver: AuthServer, publisher: DocumentServer) -> None:
    """CWE-672: a key set that was fetched in the year of a wrong clock would not be stale for years."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    client.accepted("grant")
    authserver.clock.advance(1000 * HOUR)
    refused(client, attacker(authserver.clock))
    client.accepted("grant")
    authserver.clock.advance(-999 * HOUR)
    refused(client, attacker(authserver.clock))
    client.accepted("grant")
    assert publisher.paths() == ["/jwks"] * 2
    authserver.clock.advance(1000 * HOUR)
    refused(client, attacker(authserver.clock))
    authserver.clock.advance(-999 * HOUR)
    publisher.answers.clear()
    check_refusal(client, client.platform.key, STALE)


@pytest.mark.threat("T-207")
def test_a_key_that_the_issuer_withdraws_is_refused(authserver: AuthServer, publisher: DocumentServer) -> None:
    """RFC 8725 3.10; a platform replaces a stolen key. No node may keep it for longer than ten minutes."""
    client = published(authserver, publisher, kubernetes(authserver.clock))
    stolen, new = client.platform.key, client.platform.rotate()
    client.accepted("grant", client.platform.token(key=stolen))
    publisher.answers["/jwks"] = Answer(client.platform.jwks(new))
    authserver.clock.advance(60)
    client.accepted("grant")
    refused(client, stolen)


@pytest.mark.divergence("D-81")
@pytest.mark.threat("T-207")
@pytest.mark.parametrize("attack", ["issuer", "host", "slash", "scheme", "user", "type", "missing", "metadata"])
def test_metadata_cannot_send_the_server_elsewhere(
    authserver: AuthServer, publisher: DocumentServer, attack: str
) -> None:
    """OpenID Connect Discovery 4.3; RFC 8414 6.2; CWE-918: neither to another host, nor to another issuer's keys."""
    platform, other = oidc(authserver.clock), DocumentServer()
    platform.issuer = platform.workload["iss"] = publisher.url
    evil = attacker(authserver.clock)
    good = {"issuer": publisher.url, "jwks_uri": f"{publisher.url}/jwks"}
    path = "/.well-known/openid-configuration"

    def serve(metadata: Any, document: bytes) -> None:
        publisher.answers[path] = Answer(json.dumps(metadata).encode())
        publisher.answers["/jwks"] = Answer(document)

    try:
        location = KeyLocation(discovery=True, jwks_uri=None, ca_file=None, bearer_token_file=None)
        client = WorkloadClient(authserver, platform, location=location)
        serve(good, platform.jwks(platform.key, platform.rotate()))
        authserver.clock.advance(60)
        client.accepted("grant")
        assert publisher.paths() == [path, "/jwks"]
        bad: dict[str, Any] = {
            "issuer": {**good, "issuer": other.url},
            "slash": {**good, "issuer": f"{publisher.url}/"},
            "host": {**good, "jwks_uri": f"{other.url}/jwks"},
            "scheme": {**good, "jwks_uri": f"https{publisher.url[4:]}/jwks"},
            "user": {**good, "jwks_uri": f"{publisher.url}@{other.url[7:]}/jwks"},
            "type": {**good, "jwks_uri": [f"{publisher.url}/jwks"]},
            "missing": {"issuer": publisher.url},
            "metadata": [good],
        }
        serve(bad[attack], keys(evil.public_jwk()))
        other.answers["/jwks"] = Answer(keys(evil.public_jwk()))
        authserver.clock.advance(60)
        refused(client, evil)
        assert publisher.paths() == [path, "/jwks", path]
        assert other.paths() == []
        client.accepted("grant")
    finally:
        other.close()


HOSTILE = f"x\x9b2J\u202e {BEARER} gths_0123456789abcdef {'y' * 1000}"
"""Escapes for a terminal, secrets and much text. The bearer token is the one that the platform was sent."""


def failing_answers() -> Iterator[Any]:
    """Return what makes the metadata and the keys of the issuer at a URL, whose fetch fails with a text of its own."""

    def case(name: str, reason: str, make: Any) -> Any:
        return pytest.param(make, reason, id=name)

    def metadata(url: str, **changes: Any) -> Answer:
        return Answer(json.dumps({"issuer": url, "jwks_uri": f"{url}/jwks", **changes}).encode())

    # A URL has neither spaces nor escapes.
    path = f"/keys/{BEARER}/{'y' * 1000}?access_token={BEARER}&code=hunter2&pad={'y' * 400}"
    yield case("address", "status 404", lambda url, key: (metadata(url, jwks_uri=f"{url}{path}"), Answer(key)))
    yield case("issuer", "its issuer is", lambda url, key: (metadata(url, issuer=HOSTILE), Answer(key)))
    elsewhere = f"https://evil.example{path}"
    yield case("host", "is on another host", lambda url, key: (metadata(url, jwks_uri=elsewhere), Answer(key)))
    header = {"Content-Type": HOSTILE.replace("\u202e", "")}
    yield case("type", "its content type is", lambda url, key: (metadata(url), Answer(key, headers=header)))
    yield case("kid", "no usable key", lambda url, key: (metadata(url), Answer(keys({"kid": HOSTILE, "kty": HOSTILE}))))


@pytest.mark.threat("T-212")
@pytest.mark.parametrize(("make", "reason"), list(failing_answers()))
def test_the_reason_of_a_failed_fetch_is_short_and_without_secrets(
    authserver: AuthServer, publisher: DocumentServer, tmp_path: Path, make: Any, reason: str
) -> None:
    """CWE-117, CWE-150, CWE-532: it reaches audit events, logs and terminals, and a platform writes parts of it.

    An address that the metadata name can hold the bearer token with which they were fetched.
    """
    platform = oidc(authserver.clock)
    platform.issuer = platform.workload["iss"] = publisher.url
    file = tmp_path / "token"
    file.write_text(BEARER)
    location = KeyLocation(discovery=True, jwks_uri=None, ca_file=None, bearer_token_file=str(file))
    client = WorkloadClient(authserver, platform, location=location)
    path, address = "/.well-known/openid-configuration", f"/jwks?access_token={BEARER}"
    good = {"issuer": publisher.url, "jwks_uri": f"{publisher.url}{address}"}
    publisher.answers[path] = Answer(json.dumps(good).encode())
    publisher.answers[address] = Answer(platform.jwks(platform.key, platform.rotate()))
    authserver.clock.advance(60)
    client.accepted("grant")
    publisher.answers[path], publisher.answers["/jwks"] = make(publisher.url, platform.jwks())
    authserver.clock.advance(60)
    refusal = client.post("grant", platform.token(key=attacker(authserver.clock)))
    assert refusal.status_code == 400
    [row] = authserver.audit(request_id=refusal.json["request_id"])
    assert reason in row["reason"], "an operator must see what failed"
    written = json.dumps(row, ensure_ascii=False)
    assert written.isprintable()
    assert len(written) < 1500
    assert [secret for secret in (*BEARER.split("."), "gths_", "hunter2") if secret in written] == []
