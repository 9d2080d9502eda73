"""Checks that are reported together."""

from collections.abc import Callable

from gatehouse.shared.service.checks import Check, passed, run_checks
from gatehouse.shared.service.cli import Refusal


def failing(message: str) -> Callable[[], str]:
    def step() -> str:
        raise Refusal(message)

    return step


def test_a_failure_is_reported_once() -> None:
    steps = [("a", failing("locked")), ("b", failing("locked")), ("c", failing("missing")), ("d", lambda: "fine")]
    checks = run_checks(steps, (Refusal,))
    assert checks == [
        Check("a", "failed", "locked"),
        Check("b", "not checked"),
        Check("c", "failed", "missing"),
        Check("d", "ok", "fine"),
    ]
    assert not passed(checks)


def test_nothing_is_checked_after_a_failure_if_checks_build_on_each_other() -> None:
    checks = run_checks([("a", failing("locked")), ("b", lambda: "fine")], (Refusal,), stop=True)
    assert checks == [Check("a", "failed", "locked"), Check("b", "not checked")]
