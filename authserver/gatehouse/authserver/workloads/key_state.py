"""Tells operators whether the keys of a trusted issuer can be used, how old they are, and why a fetch failed."""

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
        if not issuer.location.is_fetched:
            return f"no keys are known. Give them: {give_keys_command(issuer)}"
        return _with_failure("no keys are known", issuer, now)
    is_usable = bool(issuer.usable_keys(now))
    if age < 0 and not is_usable:
        return "a server whose clock is ahead fetched the keys"
    if issuer.failure is not None and not is_usable:
        limit = f"the keys are {describe_age(age)} old, and are used for {describe_age(MAX_AGE)}"
        return _with_failure(limit, issuer, now)
    if all(keys[0].thumbprint in shared for keys in issuer.keys.values()):
        return "another trusted issuer has the same keys"
    return None


def key_warning(issuer: TrustedIssuer, now: float) -> str | None:
    """Say how old the keys of an issuer are if the last fetch failed, or is overdue; None otherwise."""
    age = key_age(issuer, now)
    if age is None or not issuer.location.is_fetched or (issuer.failure is None and age <= OLD_AFTER):
        return None
    old = f"the keys are {describe_age(max(0, age))} old"
    return f"{old}; no server has fetched them since" if issuer.failure is None else _with_failure(old, issuer, now)


def last_failure(issuer: TrustedIssuer, now: float) -> str | None:
    """Say when the last fetch of the keys of an issuer failed, and why; None if it did not fail."""
    if issuer.failure is None:
        return None
    age = max(0, int(now) - issuer.attempted_at)
    return f"the last fetch of the keys failed {describe_age(age)} ago: {issuer.failure}"


def give_keys_command(issuer: TrustedIssuer) -> str:
    """Return the command that replaces the keys of an issuer whose keys an admin gives."""
    return f"authserver issuer update {issuer.name} --jwks-file FILE"


def describe_age(seconds: int) -> str:
    """Return a number of seconds for people."""
    if seconds < 2 * _MINUTE:
        return f"{seconds} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE} min"
    return f"{seconds // _HOUR} h"


def _with_failure(text: str, issuer: TrustedIssuer, now: float) -> str:
    """Add the last failure to a text, if there is one."""
    failed = last_failure(issuer, now)
    return text if failed is None else f"{text}; {failed}"
