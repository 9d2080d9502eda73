"""Figures with a goal and a bound, and whether they are met."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from bench.measuring import Round

Verdict = Literal["goal met", "within the bound", "MISSED", "reported"]


@dataclass(frozen=True, slots=True)
class Target:
    """What a figure should be at most, and what it must be at most."""

    goal: float
    bound: float


@dataclass(frozen=True, slots=True)
class Figure:
    """A measured value of a row. Smaller is better."""

    label: str
    value: float
    unit: str
    target: Target | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met; `reported` without one."""
        if self.target is None:
            return "reported"
        if self.value <= self.target.goal:
            return "goal met"
        return "within the bound" if self.value <= self.target.bound else "MISSED"


P99 = Target(1.0, 1.5)
"""The target of p99 relative to a peer's in the same run."""


def ratios(figures: Mapping[str, Round], targets: Mapping[str, Target | None], p99: Target | None) -> list[Figure]:
    """Return our CPU time and p99 relative to each other contestant. The first contestant is ours.

    `targets` has those of the CPU time by contestant, and `p99` is that of every contestant that has one.
    """
    (name, ours), *others = figures.items()
    found = []
    for other, theirs in others:
        target = targets.get(other)
        found.append(Figure(f"CPU per request, {name} / {other}", ours.cpu_us / theirs.cpu_us, "x", target))
        tail = p99 if target else None
        found.append(Figure(f"p99, {name} / {other}", ours.p99_ms / theirs.p99_ms, "x", tail))
    return found
