"""What a row of the benchmark is, and what it starts its servers with."""

from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench import peers
from bench.contest import Contestant, Schedule, medians, run_contest
from bench.measuring import Round
from bench.servers import Server, Stack
from bench.verdicts import P99, Figure, Target, ratios


@dataclass
class Outcome:
    """What a row found."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    figures: list[Figure] = field(default_factory=list)

    def with_memory(self, name: str, target: Target) -> "Outcome":
        """Return the outcome with the memory of a contestant's worker after the last round."""
        figure = Figure("resident memory of a worker after load", self.rounds[name][-1].memory_mib, "MiB", target)
        return replace(self, figures=[*self.figures, figure])


@dataclass
class Bench:
    """The servers and the schedule of one row. The servers are stopped when `exits` is closed."""

    folder: Path
    schedule: Schedule
    exits: ExitStack
    progress: Callable[[str], None]
    settings: Callable[[], Mapping[str, str]] = dict
    """Returns the settings of the next installation, in place of the defaults."""
    missing: list[str] = field(default_factory=list)
    """The peers that are not installed, with the reason."""

    def installation(self, *servers: str, name: str = "ours", counts: bool = True) -> Stack:
        """Create an installation, and start these of its servers. `counts` is that of `Stack`."""
        stack = Stack(self.folder / name.replace(" ", "-"), counts=counts, **self.settings())
        # The catalogue file goes there. Without an SQLite file, nothing else creates the folder.
        (stack.folder / "var").mkdir(parents=True, mode=0o700)
        stack.init()
        self.exits.callback(stack.stop)
        self.start(stack, *servers)
        return stack

    @staticmethod
    def start(stack: Stack, *servers: str) -> None:
        """Start servers of an installation, and wait until they are ready."""
        for server in servers:
            stack.start(server)
            stack.wait_until_ready(server)

    def peer(self, peer: peers.Peer, options: Mapping[str, Any], *, at_mcp: bool = False) -> Iterable[Server]:
        """Start a peer. Returns its server, or nothing if it is not installed."""
        try:
            return [self.exits.enter_context(peer.running(self.folder, options, at_mcp=at_mcp))]
        except peers.NotInstalled as reason:
            self.missing.append(f"{peer.name}: {reason}")
            self.progress(f"{peer.name} is skipped: {reason}")
            return []

    def contest(
        self, contestants: list[Contestant], targets: Mapping[str, Target | None], p99: Target | None = P99
    ) -> Outcome:
        """Run a contest of the first contestant with the others."""
        rounds = run_contest(contestants, self.schedule, self.folder / "requests", self.progress)
        return Outcome(rounds, ratios(medians(rounds), targets, p99))


@dataclass(frozen=True, slots=True)
class Row:
    """A row of the benchmark."""

    name: str
    title: str
    run: Callable[[Bench], Outcome]
