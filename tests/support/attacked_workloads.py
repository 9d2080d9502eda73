"""Workloads whose platform tokens are attacked, and the keys of an attacker."""

from typing import Any

from gatehouse.shared.protocol.jws import SigningKey
from support.authserver import AuthServer
from support.clock import FakeClock
from support.platforms import PLATFORMS, kubernetes
from support.workloads import WorkloadClient


def workload(server: AuthServer, kind: str = "kubernetes", **changes: Any) -> WorkloadClient:
    """Return a client of a workload on a platform of this kind. Changes are to the trusted issuer."""
    client = WorkloadClient(server, PLATFORMS[kind](server.clock), **changes)
    # The server reads trusted issuers again after a second.
    server.clock.advance(1)
    return client


def attacker(clock: FakeClock, alg: str = "RS256") -> SigningKey:
    """Return a key that no trusted issuer publishes."""
    return kubernetes(clock, name="attacker", alg=alg).key
