"""Tells operators whether the keys of a trusted issuer can be used, and how old they are."""

from collections.abc import Collection
from typing import Final

from gatehouse.authserver.workloads.issuer_keys import MAX_AGE, REFRESH_INTERVAL
from gatehouse.authserver.workloads.registry import TrustedIssuer

OLD_AFTER: Final = 2 * REFRESH_INTERVAL
"""Seconds after which a key set should have been fetched again."""

_MINUTE, _HOUR = 60, 3600


def key_age(issuer: TrustedIssuer, now: float) -> int | None:
    """Return the seconds since the keys were fetched, or given by an admin; None if there are none.

    Below 0 if that was on a server whose clock is ahead.
    """
    return None if issuer.fetched_at is None or not issuer.keys else int(now) - issuer.fetched_at


def key_problem(issuer: TrustedIssuer, shared: Collection[str], now: float) -> str | None:
    """Say why no token of an issuer can be verified; None if one can.

    Keys that are too old because no server has run are no problem: one that starts fetches them. `shared` are the
    thumbprints of keys that several enabled issuers have.
    """
    age = key_age(issuer, now)
    if age is None:
        return f"no keys are known{_failure(issuer)}"
    is_usable = bool(issuer.usable_keys(now))
    if age < 0 and not is_usable:
        return "a server whose clock is ahead fetched the keys"
    if issuer.failure is not None and not is_usable:
        return f"the keys are {describe_age(age)} old, and are used for {describe_age(MAX_AGE)}{_failure(issuer)}"
    if all(keys[0].thumbprint in shared for keys in issuer.keys.values()):
        return "another trusted issuer has the same keys"
    return None


def old_keys(issuer: TrustedIssuer, now: float) -> str | None:
    """Say how old the keys of an issuer are if they should have been fetched again; None otherwise."""
    age = key_age(issuer, now)
    if age is None or not issuer.location.is_fetched or age <= OLD_AFTER:
        return None
    reason = _failure(issuer) or ": no server has fetched them since"
    return f"the keys are {describe_age(age)} old{reason}"


def describe_age(seconds: int) -> str:
    """Return a number of seconds for people."""
    if seconds < 2 * _MINUTE:
        return f"{seconds} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE} min"
    return f"{seconds // _HOUR} h"


def _failure(issuer: TrustedIssuer) -> str:
    return "" if issuer.failure is None else f": {issuer.failure}"
