"""Why no token of a platform authenticates a client, as `client explain` and the access matrix say it."""

from dataclasses import replace

import pytest
from support.authserver import AuthServer
from support.platforms import github, kubernetes
from support.workloads import DISCOVERY, trust

from gatehouse.authserver.grants.entitlements import Obstacle
from gatehouse.authserver.grants.workload_trust import TrustState, trust_state
from gatehouse.authserver.workloads.issuer_keys import MAX_AGE
from gatehouse.authserver.workloads.registry import TrustedIssuer


@pytest.fixture
def issuers(authserver: AuthServer) -> list[TrustedIssuer]:
    """A cluster whose keys were given, and GitHub, whose keys were fetched."""
    cluster = trust(authserver, kubernetes(authserver.clock))
    return [cluster, trust(authserver, github(authserver.clock), location=DISCOVERY)]


def test_usable_issuers_are_no_obstacle(authserver: AuthServer, issuers: list[TrustedIssuer]) -> None:
    assert trust_state("agent_1", ["cluster", "github"], issuers, authserver.clock()) == TrustState()


def test_a_client_without_rules_gets_no_token(authserver: AuthServer, issuers: list[TrustedIssuer]) -> None:
    [obstacle] = trust_state("agent_1", [], issuers, authserver.clock()).obstacles
    assert obstacle.reason == "no platform token is accepted yet, because the client has no trust rule"
    assert obstacle.remediation is None
    assert obstacle.next_step == "Add one: authserver client trust add agent_1 --issuer NAME --claim NAME=VALUE"


def test_an_unusable_issuer_is_an_obstacle_unless_another_one_is_usable(
    authserver: AuthServer, issuers: list[TrustedIssuer]
) -> None:
    cluster, fetched = issuers
    now = authserver.clock()
    changed = [replace(cluster, disabled=True), fetched]
    disabled = Obstacle("the trusted issuer cluster is disabled", "authserver issuer enable cluster")
    assert trust_state("agent_1", ["cluster"], changed, now) == TrustState((disabled,))
    assert trust_state("agent_1", ["cluster", "github"], changed, now) == TrustState(warnings=(disabled,))
    assert trust_state("agent_1", ["github"], changed, now) == TrustState()


def test_an_issuer_without_usable_keys_is_an_obstacle(authserver: AuthServer, issuers: list[TrustedIssuer]) -> None:
    cluster, fetched = issuers
    later = authserver.clock() + MAX_AGE + 1
    failed = [cluster, replace(fetched, failure="github.example did not answer")]
    assert trust_state("agent_1", ["github"], failed, authserver.clock()) == TrustState()
    [obstacle] = trust_state("agent_1", ["github"], failed, later).obstacles
    assert obstacle.reason.startswith("the trusted issuer github has no usable keys: the keys are 24 h old")
    assert (obstacle.remediation, obstacle.next_step) == (None, "See: authserver issuer show github")


def test_keys_that_two_issuers_share_are_an_obstacle_unless_one_is_disabled(
    authserver: AuthServer, issuers: list[TrustedIssuer]
) -> None:
    cluster, fetched = issuers
    now, shared = authserver.clock(), replace(fetched, keys=cluster.keys)
    [obstacle] = trust_state("agent_1", ["cluster"], [cluster, shared], now).obstacles
    assert "another trusted issuer has the same keys" in obstacle.reason
    assert trust_state("agent_1", ["cluster"], [cluster, replace(shared, disabled=True)], now) == TrustState()
