"""Why no token of a platform authenticates a client, for `client explain` and the access matrix. Pure: no I/O."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from gatehouse.authserver.grants.entitlements import Obstacle
from gatehouse.authserver.workloads.key_state import key_problem
from gatehouse.authserver.workloads.registry import TrustedIssuer, shared_keys


@dataclass(frozen=True, slots=True)
class TrustState:
    """What keeps platform tokens from authenticating a client."""

    obstacles: tuple[Obstacle, ...] = ()
    """If no token of any rule is accepted."""
    warnings: tuple[Obstacle, ...] = ()
    """If only tokens of some rules are."""


def trust_state(client_id: str, named: Collection[str], issuers: Sequence[TrustedIssuer], now: float) -> TrustState:
    """Return whether the trust rules of a client can match a token at a time, in seconds since the epoch.

    Args:
        client_id: of the client.
        named: the names of the trusted issuers of its rules.
        issuers: all trusted issuers.
        now: the time.
    """
    if not named:
        command = f"authserver client trust add {client_id} --issuer NAME --claim NAME=VALUE"
        reason = "no platform token is accepted yet, because the client has no trust rule"
        return TrustState((Obstacle(reason, None, f"Add one: {command}"),))
    shared = shared_keys([issuer for issuer in issuers if not issuer.disabled])
    problems = [_problem(issuer, shared, now) for issuer in issuers if issuer.name in named]
    found = tuple(problem for problem in problems if problem is not None)
    return TrustState(found) if len(found) == len(problems) else TrustState(warnings=found)


def _problem(issuer: TrustedIssuer, shared: Collection[str], now: float) -> Obstacle | None:
    """Say why no token of a trusted issuer is accepted; None if one can be."""
    if issuer.disabled:
        return Obstacle(f"the trusted issuer {issuer.name} is disabled", f"authserver issuer enable {issuer.name}")
    if (problem := key_problem(issuer, shared, now)) is not None:
        reason = f"the trusted issuer {issuer.name} has no usable keys: {problem}"
        return Obstacle(reason, None, f"See: authserver issuer show {issuer.name}")
    return None
