"""The bundles of SPIFFE trust domains: how often they are fetched, and that none goes back."""

import json
from typing import Any

import pytest
from support.authserver import AuthServer
from support.clock import FakeClock
from support.document_server import DocumentServer
from support.issuers import FetchedIssuer, change
from support.platforms import Platform, spiffe

from gatehouse.authserver.workloads.issuer_keys import MAX_AGE, REFETCH_INTERVAL, REFRESH_INTERVAL
from gatehouse.authserver.workloads.key_renewal import KeyRenewal

pytestmark = pytest.mark.both_databases


@pytest.fixture
def trust_domain(authserver: AuthServer, documents: DocumentServer, clock: FakeClock) -> FetchedIssuer:
    return FetchedIssuer(authserver, spiffe(clock), documents)


def bundle(platform: Platform, **changes: Any) -> bytes:
    """Return the bundle of a trust domain with changed members; None removes."""
    members = {**json.loads(platform.jwks()), **changes}
    return json.dumps({name: value for name, value in members.items() if value is not None}).encode()


@pytest.mark.parametrize(
    ("hint", "interval"),
    [
        (300, 300),
        (1, REFETCH_INTERVAL),
        (0, REFETCH_INTERVAL),
        (-5, REFETCH_INTERVAL),
        (86_400, REFRESH_INTERVAL),
        (None, REFRESH_INTERVAL),
        ("60", REFRESH_INTERVAL),
        (60.0, REFRESH_INTERVAL),
        (True, REFRESH_INTERVAL),
    ],
)
def test_a_bundle_says_when_it_is_fetched_again(
    trust_domain: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock, hint: Any, interval: int
) -> None:
    """SPIFFE Trust Domain and Bundle 4.1.2, within bounds: no issuer makes this server ask it all the time."""
    trust_domain.publish(bundle(trust_domain.platform, spiffe_refresh_hint=hint))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(trust_domain.name)
    clock.advance(interval - 1)
    assert renewal.due() == []
    clock.advance(1)
    assert renewal.due() == [trust_domain.name]


def test_the_hint_of_an_unreadable_bundle_is_not_read(
    trust_domain: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    """As after an upgrade with stricter rules."""
    for stored in ("{", "[]"):
        change(trust_domain, jwks=stored)
        clock.advance(REFRESH_INTERVAL - 1)
        assert renewal.due() == []
        clock.advance(1)
        assert renewal.due() == [trust_domain.name]
        renewal.renew(trust_domain.name)
        assert trust_domain.kids() == {trust_domain.platform.key.kid}


@pytest.mark.threat("T-207")
@pytest.mark.parametrize(("sequence", "shown"), [(6, "6"), (None, "0"), ("8", "0"), (-1, "-1")])
def test_a_bundle_that_is_older_than_the_stored_one_is_refused(
    trust_domain: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock, sequence: Any, shown: str
) -> None:
    """SPIFFE Trust Domain and Bundle 4.1.1: it might still hold a key that was revoked."""
    trust_domain.publish(bundle(trust_domain.platform, spiffe_sequence=7))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(trust_domain.name)
    known = trust_domain.kids()
    trust_domain.platform.rotate()
    trust_domain.publish(bundle(trust_domain.platform, spiffe_sequence=sequence))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(trust_domain.name)
    assert trust_domain.usable() == known
    assert trust_domain.stored().failure == f"its spiffe_sequence is {shown}, lower than 7 of the last bundle"
    for following in (7, 8):
        trust_domain.publish(bundle(trust_domain.platform, spiffe_sequence=following))
        clock.advance(REFRESH_INTERVAL)
        renewal.renew(trust_domain.name)
        assert trust_domain.stored().failure is None


def test_a_trust_domain_that_begins_again_is_accepted_after_a_day(
    trust_domain: FetchedIssuer, renewal: KeyRenewal, clock: FakeClock
) -> None:
    """Its old keys are not used any more by then."""
    trust_domain.publish(bundle(trust_domain.platform, spiffe_sequence=7))
    clock.advance(REFRESH_INTERVAL)
    renewal.renew(trust_domain.name)
    trust_domain.publish(bundle(trust_domain.platform, spiffe_sequence=1))
    clock.advance(MAX_AGE)
    renewal.renew(trust_domain.name)
    assert trust_domain.stored().failure is not None
    clock.advance(REFETCH_INTERVAL)
    assert trust_domain.usable() == set()
    renewal.renew(trust_domain.name)
    assert trust_domain.usable() == {trust_domain.platform.key.kid}
