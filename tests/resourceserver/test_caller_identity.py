"""What an upstream learns of its caller."""

import json
from pathlib import Path

import pytest
from support.clock import FakeClock

from gatehouse.resourceserver.upstream.caller_identity import (
    CALLER_TYPE,
    CallerIdentity,
    caller_meta,
    create_caller_keys,
)
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.jws import InvalidToken, SigningKey, read_header, verify
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.service.settings import InvalidSettings

RESOURCE = "https://tools.example.com/mcp"
UPSTREAM = "https://up.example/mcp"
CLAIMS = AccessClaims(
    "https://auth.example.com", "agent", "agent", RESOURCE, 0, 300, "j1", frozenset({"a"}), {"workspace_id": "wks_1"}
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys" / "caller.json"


@pytest.fixture
def identity(path: Path, clock: FakeClock) -> CallerIdentity:
    assert create_caller_keys(path)
    return CallerIdentity.read(path, RESOURCE, clock)


def test_an_upstream_verifies_the_assertion_with_the_published_keys(identity: CallerIdentity, clock: FakeClock) -> None:
    assertion = identity.assertion(CLAIMS, UPSTREAM)
    header = read_header(assertion)
    [key] = parse_key_set(identity.key_set).values()
    assert (header.alg, header.typ, header.kid) == ("ES256", CALLER_TYPE, key.kid)
    assert key.kid == key.thumbprint
    assert verify(assertion, header, key) == {
        "iss": RESOURCE,
        "aud": UPSTREAM,
        "sub": "agent",
        "client_id": "agent",
        "jti": "j1",
        "iat": int(clock()),
        "exp": int(clock()) + 60,
    }


def test_the_published_keys_have_no_private_half(identity: CallerIdentity) -> None:
    [jwk] = json.loads(identity.key_set)["keys"]
    assert jwk.keys() == {"kty", "crv", "x", "y", "kid", "alg", "use"}


def test_the_last_key_signs_and_all_are_published(path: Path, clock: FakeClock) -> None:
    keys = [SigningKey.generate("ES256"), SigningKey.generate("ES256")]
    identity = CallerIdentity(keys, RESOURCE, clock)
    published = parse_key_set(identity.key_set)
    assert [*published] == [key.kid for key in keys]
    assertion = identity.assertion(CLAIMS, UPSTREAM)
    header = read_header(assertion)
    assert verify(assertion, header, published[keys[1].kid])
    with pytest.raises(InvalidToken):
        verify(assertion, header, published[keys[0].kid])


def test_a_key_file_is_private_and_never_replaced(path: Path, clock: FakeClock) -> None:
    assert create_caller_keys(path)
    assert path.stat().st_mode & 0o777 == 0o600
    before = path.read_bytes()
    assert not create_caller_keys(path)
    assert path.read_bytes() == before
    path.chmod(0o644)
    with pytest.raises(InvalidSettings, match="accessible to others"):
        CallerIdentity.read(path, RESOURCE, clock)


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"{}",
        b'{"keys": []}',
        b'{"keys": 1}',
        b'{"keys": [{"kty": "oct", "k": "AAAAAAAAAAAAAAAAAAAAAAAAAAAA"}]}',
        json.dumps({"keys": [SigningKey.generate("ES256").public_jwk()]}).encode(),
        b'{"keys": [' + SigningKey.generate("EdDSA").private_jwk() + b"]}",
    ],
)
def test_a_malformed_key_file_is_refused(path: Path, clock: FakeClock, document: bytes) -> None:
    with pytest.raises(InvalidSettings, match="Create it with: resourceserver init"):
        CallerIdentity.read(path, RESOURCE, clock)
    assert create_caller_keys(path)
    path.write_bytes(document)
    with pytest.raises(InvalidSettings, match="not a JWK set of private keys for ES256"):
        CallerIdentity.read(path, RESOURCE, clock)


def test_a_program_gets_members_of_meta() -> None:
    assert caller_meta(CLAIMS) == {"io.gatehouse/caller": {"client_id": "agent", "sub": "agent", "jti": "j1"}}
