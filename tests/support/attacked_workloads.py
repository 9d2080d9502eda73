"""Workloads whose platform tokens are attacked, and the keys of an attacker."""

from typing import Any

from gatehouse.shared.protocol.jws import SigningKey
from support.authserver import AuthServer
from support.clock import FakeClock
from support.platforms import PLATFORMS, kubernetes
from support.workloads import FORMS, WorkloadClient


def workload(server: AuthServer, kind: str = "kubernetes", **changes: Any) -> WorkloadClient:
    """Return a client of a workload on a platform of this kind. Changes are to the trusted issuer."""
    client = WorkloadClient(server, PLATFORMS[kind](server.clock), **changes)
    # The server reads trusted issuers again after a second.
    server.clock.advance(1)
    return client


def accepted_in_both_forms(*clients: WorkloadClient) -> None:
    """Check that a faultless token of each client is accepted in both forms."""
    for client in clients:
        for form in FORMS:
            client.accepted(form)


def refused_in_both_forms(client: WorkloadClient, token: str, reason: str, **parameters: str) -> None:
    """Check that a token is refused in both forms, and the reason in the audit log."""
    for form in FORMS:
        client.refused(form, token, reason, **parameters)


def attacker(clock: FakeClock, alg: str = "RS256") -> SigningKey:
    """Return a key that no trusted issuer publishes."""
    return kubernetes(clock, name="attacker", alg=alg).key
