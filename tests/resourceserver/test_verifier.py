"""The verifier: which tokens are valid, and which results are cached."""

from dataclasses import replace
from typing import Any

import pytest
from support.clock import FakeClock
from support.resourceserver import ISSUER, RESOURCE, Issuer

from gatehouse.resourceserver.bearer.jwks import COOLDOWN, KeySource, KeysUnavailable
from gatehouse.resourceserver.bearer.verifier import TokenRefused, Verifier
from gatehouse.shared.protocol import jws
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.jws import SigningKey

pytestmark = pytest.mark.anyio


@pytest.fixture
def issuer(clock: FakeClock) -> Issuer:
    return Issuer(clock)


@pytest.fixture
async def keys(issuer: Issuer, clock: FakeClock, anyio_backend: str) -> KeySource:
    source = KeySource(issuer.fetch, clock)
    await source.refresh()
    return source


@pytest.fixture
def verifier(issuer: Issuer, keys: KeySource, clock: FakeClock) -> Verifier:
    return Verifier(ISSUER, RESOURCE, keys, issuer.statuses(keys), clock)


async def reason_of_refusal(verifier: Verifier, token: str) -> str:
    with pytest.raises(TokenRefused) as refusal:
        await verifier.verify(token)
    return refusal.value.reason


async def test_a_valid_token_is_verified(verifier: Verifier, issuer: Issuer, clock: FakeClock) -> None:
    claims = await verifier.verify(issuer.token("env:read org:read", workspace_id="wks_1", jti="one"))
    assert (claims.client_id, claims.sub, claims.jti) == ("agent_1", "agent_1", "one")
    assert (claims.iss, claims.aud) == (ISSUER, RESOURCE)
    assert claims.scope == {"env:read", "org:read"}
    assert claims.static["workspace_id"] == "wks_1"
    assert claims.exp - claims.iat == 300


@pytest.mark.threat("T-007")
@pytest.mark.parametrize("claim", ["iss", "sub", "client_id", "aud", "iat", "exp", "jti", "scope"])
async def test_every_claim_of_an_access_token_is_required(verifier: Verifier, issuer: Issuer, claim: str) -> None:
    """RFC 9068 2.2; this server requires `scope` too, because a token without rights is of no use."""
    await verifier.verify(issuer.token())
    assert await reason_of_refusal(verifier, issuer.token(**{claim: None})) == f"{claim} is missing"


@pytest.mark.parametrize("claim", ["iss", "sub", "client_id", "aud", "jti", "scope"])
@pytest.mark.parametrize("value", ["", 1, True, ["a"], {"a": "b"}], ids=repr)
async def test_a_claim_of_another_type_is_refused(verifier: Verifier, issuer: Issuer, claim: str, value: Any) -> None:
    await verifier.verify(issuer.token())
    assert await reason_of_refusal(verifier, issuer.token(**{claim: value})) == f"{claim} is not a non-empty string"


@pytest.mark.parametrize("scope", [" env:read", "env:read  org:read", "env:read\torg:read", 'env"read'], ids=repr)
async def test_a_scope_outside_the_grammar_is_refused(verifier: Verifier, issuer: Issuer, scope: str) -> None:
    """RFC 6749 3.3."""
    await verifier.verify(issuer.token("env:read"))
    assert await reason_of_refusal(verifier, issuer.token(scope)) == "scope is malformed"


@pytest.mark.threat("T-006")
async def test_a_token_is_valid_up_to_the_end_of_the_leeway(
    verifier: Verifier, issuer: Issuer, clock: FakeClock
) -> None:
    token = issuer.token()
    clock.advance(300 + LEEWAY - 0.001)
    await verifier.verify(token)
    clock.advance(0.001)
    assert await reason_of_refusal(verifier, token) == "expired 30 s ago"


@pytest.mark.threat("T-013")
async def test_a_new_token_expires_at_the_same_moment_as_a_cached_one(
    verifier: Verifier, issuer: Issuer, clock: FakeClock
) -> None:
    token = issuer.token()
    clock.advance(300 + LEEWAY)
    assert await reason_of_refusal(verifier, token) == "expired 30 s ago"


async def test_a_token_may_be_issued_in_the_future_by_the_leeway(
    verifier: Verifier, issuer: Issuer, clock: FakeClock
) -> None:
    token = issuer.token()
    clock.advance(-LEEWAY)
    await verifier.verify(token)
    clock.advance(-0.001)
    assert await reason_of_refusal(verifier, token) == "issued 31 s in the future"


@pytest.mark.parametrize("lifetime", [1, MAX_LIFETIME])
async def test_a_lifetime_of_up_to_an_hour_is_accepted(verifier: Verifier, issuer: Issuer, lifetime: int) -> None:
    claims = await verifier.verify(issuer.token(exp=int(issuer.clock()) + lifetime))
    assert claims.exp - claims.iat == lifetime


@pytest.mark.threat("T-006", "T-082")
@pytest.mark.parametrize("lifetime", [MAX_LIFETIME + 1, 10 * 365 * 86400, 0, -1])
async def test_a_lifetime_that_is_never_issued_is_refused(verifier: Verifier, issuer: Issuer, lifetime: int) -> None:
    reason = await reason_of_refusal(verifier, issuer.token(exp=int(issuer.clock()) + lifetime))
    assert reason == f"the lifetime is {lifetime} s; 1 to 3600 s are allowed"


@pytest.mark.divergence("D-06")
@pytest.mark.parametrize("aud", [[RESOURCE], [RESOURCE, "https://other.example.com"], []], ids=repr)
async def test_a_list_of_audiences_is_refused(verifier: Verifier, issuer: Issuer, aud: list[str]) -> None:
    """A token for several resources could be replayed by one of them against the others (RFC 9700 2.3)."""
    await verifier.verify(issuer.token(aud=RESOURCE))
    assert await reason_of_refusal(verifier, issuer.token(aud=aud)) == "aud is not a non-empty string"


@pytest.mark.divergence("D-09")
@pytest.mark.parametrize("claim", ["cnf", "nbf"])
@pytest.mark.parametrize("value", [{"jkt": "abc"}, {}, 0, False, ""], ids=repr)
async def test_a_token_with_an_unknown_restriction_is_refused(
    verifier: Verifier, issuer: Issuer, claim: str, value: Any
) -> None:
    """RFC 7800 3.1, RFC 7519 4.1.5."""
    await verifier.verify(issuer.token())
    assert claim in await reason_of_refusal(verifier, issuer.token(**{claim: value}))


async def test_a_cached_token_is_accepted_while_the_issuer_is_away(verifier: Verifier, issuer: Issuer) -> None:
    token = issuer.token()
    first = await verifier.verify(token)
    issuer.away = True
    assert await verifier.verify(token) == first
    await verifier.verify(issuer.token())


@pytest.mark.threat("T-013", "T-082")
async def test_a_cached_token_is_refused_when_its_key_leaves_the_set(
    verifier: Verifier, issuer: Issuer, keys: KeySource
) -> None:
    token = issuer.token()
    await verifier.verify(token)
    issuer.published = [SigningKey.generate("ES256").public_jwk()]
    await keys.refresh()
    assert await reason_of_refusal(verifier, token) == "kid is not in the issuer's key set"


async def test_a_cached_token_is_refused_when_its_kid_names_another_key(
    verifier: Verifier, issuer: Issuer, keys: KeySource
) -> None:
    token = issuer.token()
    await verifier.verify(token)
    successor = replace(SigningKey.generate("ES256"), kid=issuer.key.kid)
    issuer.published = [successor.public_jwk()]
    await keys.refresh()
    assert await reason_of_refusal(verifier, token) == "signature does not match"
    issuer.key = successor
    await verifier.verify(issuer.token())


async def test_a_token_of_a_returned_key_is_accepted_again(
    verifier: Verifier, issuer: Issuer, keys: KeySource, clock: FakeClock
) -> None:
    token, published = issuer.token(), issuer.published
    await verifier.verify(token)
    issuer.published = [SigningKey.generate("ES256").public_jwk()]
    await keys.refresh()
    await reason_of_refusal(verifier, token)
    issuer.published = published
    await keys.refresh()
    await verifier.verify(token)


async def test_a_token_of_a_new_key_is_accepted_at_its_first_use(
    verifier: Verifier, issuer: Issuer, clock: FakeClock
) -> None:
    issuer.key = SigningKey.generate("ES256")
    assert await reason_of_refusal(verifier, issuer.token()) == "kid is not in the issuer's key set"
    issuer.published.append(issuer.key.public_jwk())
    clock.advance(COOLDOWN)
    await verifier.verify(issuer.token())


async def test_a_foreign_tokens_issuer_is_recorded_as_unverified(verifier: Verifier, issuer: Issuer) -> None:
    """An unsigned claim is marked as such, and can neither forge a line of the audit log nor carry a secret into it."""
    await verifier.verify(issuer.token())
    issuer.key = SigningKey.generate("ES256")
    unknown = "kid is not in the issuer's key set"
    assert await reason_of_refusal(verifier, issuer.token()) == unknown
    for iss, shown in (
        ("https://staging.example.com", "https://staging.example.com"),
        ("https://a.example\n\x1b[2J", "https://a.example\\x0a\\x1b[2J"),
        ("gths_hunter2", "[masked]"),
        ("a" * 101, "a" * 100),
    ):
        assert await reason_of_refusal(verifier, issuer.token(iss=iss)) == f"{unknown}; unverified, its iss is {shown}"
    assert await reason_of_refusal(verifier, issuer.token(iss=7)) == unknown


async def test_a_refused_token_is_not_cached(verifier: Verifier, issuer: Issuer, clock: FakeClock) -> None:
    too_early = issuer.token(iat=int(clock()) + LEEWAY + 1)
    assert await reason_of_refusal(verifier, too_early) == "issued 31 s in the future"
    forged = issuer.token(aud="https://other.example.com/mcp")
    for _ in range(2):
        assert await reason_of_refusal(verifier, forged) == "aud is https://other.example.com/mcp, not this resource"
    clock.advance(1)
    await verifier.verify(too_early)


async def test_the_cache_keeps_the_most_recently_used_tokens(
    issuer: Issuer, keys: KeySource, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory is bounded, however many tokens are sent."""
    verifier = Verifier(ISSUER, RESOURCE, keys, issuer.statuses(keys), clock, cache_size=2)
    first, second, third = (issuer.token() for _ in range(3))
    for token in (first, second, first, third):
        await verifier.verify(token)
    verified: list[str] = []

    def verify(token: str, *arguments: Any) -> dict[str, Any]:
        verified.append(token)
        return check_signature(token, *arguments)

    check_signature = jws.verify
    monkeypatch.setattr(jws, "verify", verify)
    for token in (third, first, second):
        assert (await verifier.verify(token)).client_id == "agent_1"
    assert verified == [second]


@pytest.mark.threat("T-004")
async def test_two_resources_do_not_accept_each_others_tokens(
    verifier: Verifier, issuer: Issuer, keys: KeySource, clock: FakeClock
) -> None:
    elsewhere = Verifier(ISSUER, "https://other.example.com/mcp", keys, issuer.statuses(keys), clock)
    token = issuer.token()
    await verifier.verify(token)
    assert await reason_of_refusal(elsewhere, token) == f"aud is {RESOURCE}, not this resource"


async def test_no_token_is_verified_before_a_key_is_known(issuer: Issuer, clock: FakeClock) -> None:
    issuer.away = True
    keys = KeySource(issuer.fetch, clock)
    verifier = Verifier(ISSUER, RESOURCE, keys, issuer.statuses(keys), clock)
    with pytest.raises(KeysUnavailable):
        await verifier.verify(issuer.token())
    assert await reason_of_refusal(verifier, "not.a.token") != ""
    issuer.away = False
    clock.advance(1)
    await verifier.verify(issuer.token())
