"""Checks that are made one after the other and reported together: of a configuration, or of a token."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

from sqlalchemy.exc import SQLAlchemyError

from gatehouse.shared.service.addresses import explain_os_error
from gatehouse.shared.service.database import explain_failure
from gatehouse.shared.service.settings import InvalidSettings, SettingsT

Outcome = Literal["ok", "failed", "not checked"]


@dataclass(frozen=True, slots=True)
class Check:
    """One check and how it came out."""

    check: str
    outcome: Outcome
    detail: str = ""

    def record(self) -> dict[str, str]:
        """Return what is printed."""
        return {"check": self.check, "outcome": self.outcome, "detail": self.detail}


def run_checks(
    steps: Iterable[tuple[str, Callable[[], str]]], expected: tuple[type[Exception], ...], *, stop: bool = False
) -> list[Check]:
    """Run named steps, each of which returns a detail or raises one of the expected exceptions.

    With `stop`, what follows a failure is not checked, because it would build on it.
    """
    checks: list[Check] = []
    failed = False
    for name, step in steps:
        if failed and stop:
            checks.append(Check(name, "not checked"))
            continue
        try:
            checks.append(Check(name, "ok", step()))
        except expected as error:
            failed = True
            checks.append(Check(name, "failed", _explain(error)))
    return checks


def _explain(error: Exception) -> str:
    if isinstance(error, SQLAlchemyError):
        return explain_failure(error)
    return explain_os_error(error) if isinstance(error, OSError) else str(error)


def check_settings(load: Callable[[], SettingsT]) -> tuple[SettingsT | None, list[Check]]:
    """Return the settings, or None, and one check for each problem with them."""
    try:
        return load(), [Check("settings", "ok")]
    except InvalidSettings as error:
        return None, [Check("settings", "failed", problem) for problem in str(error).splitlines()]


def passed(checks: Iterable[Check]) -> bool:
    """Tell whether every check is ok."""
    return all(check.outcome == "ok" for check in checks)
