"""Checks that run one after the other and are reported together: of an installation, or of a token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from gatehouse.shared.service.failures import explain

Outcome = Literal["ok", "failed", "not checked"]

Step = tuple[str, Callable[[], str]]
"""A check's name, and a function that returns a detail for the report or raises an expected exception."""


@dataclass(frozen=True, slots=True)
class Check:
    """The result of one check."""

    check: str
    outcome: Outcome
    detail: str = ""

    def record(self) -> dict[str, str]:
        """Return the check as a record to print."""
        return {"check": self.check, "outcome": self.outcome, "detail": self.detail}


def run_checks(steps: Iterable[Step], expected: tuple[type[Exception], ...], *, stop: bool = False) -> list[Check]:
    """Run the steps. An expected exception fails its check; any other one is raised.

    With `stop`, the steps after a failure are not checked, because each builds on the one before. Without it, a step
    that fails exactly as an earlier one did is not checked either: the report names the cause once.
    """
    checks: list[Check] = []
    failures: set[str] = set()
    for name, step in steps:
        if failures and stop:
            checks.append(Check(name, "not checked"))
            continue
        try:
            checks.append(Check(name, "ok", step()))
        except expected as error:
            detail = explain(error) or str(error)
            checks.append(Check(name, "not checked") if detail in failures else Check(name, "failed", detail))
            failures.add(detail)
    return checks


def passed(checks: Iterable[Check]) -> bool:
    """Tell whether every check is ok."""
    return all(check.outcome == "ok" for check in checks)
