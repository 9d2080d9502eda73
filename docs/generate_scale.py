"""Compute the table of docs/scale.md from the measured figures in the same document.

    python docs/generate_scale.py

`make docs` runs it, and tests/test_documentation.py fails while the committed table differs.
"""

# ruff: noqa: RUF001 - formulas are printed with the sign for multiplication

import re
from collections.abc import Mapping
from math import ceil, comb
from pathlib import Path

from gatehouse.authserver.tokens.issue import CACHED_CLIENTS as CACHED_BLOCKS
from gatehouse.authserver.tokens.issue import MIN_BLOCK
from gatehouse.authserver.tokens.reservations import BLOCK_LIFETIME
from gatehouse.resourceserver.bearer.verifier import CACHED_TOKENS
from gatehouse.shared.protocol.claims import MAX_LIFETIME
from gatehouse.shared.protocol.clock import LEEWAY
from gatehouse.shared.protocol.status_list import LIST_SIZE, POLL_INTERVAL, WINDOW
from gatehouse.shared.service.cache import SIZE as CACHED_CLIENTS

PAGE = Path(__file__).with_name("scale.md")
BEGIN, END = "<!-- computed -->\n", "<!-- /computed -->\n"

AGENTS = (1_000, 10_000, 100_000, 1_000_000)
TOKENS_AN_HOUR = 12
CALLS_A_MINUTE = 1
USE = 0.6
"""Of a core, at most."""

_FIGURE = re.compile(r"^\| `(\w+)` \| ([\d.]+) ", re.MULTILINE)


def read_figures(page: str) -> dict[str, float]:
    """Return the measured figures of the document by their names."""
    return {name: float(value) for name, value in _FIGURE.findall(page)}


class Fleet:
    """What a number of agents needs."""

    def __init__(self, agents: int, figures: Mapping[str, float]) -> None:
        """Compute it from the figures, in the units of the document."""
        self.agents = agents
        self.figures = figures
        self.tokens = agents * TOKENS_AN_HOUR / 3600
        self.calls = agents * CALLS_A_MINUTE / 60
        self.token_cores = self.tokens * figures["token"] / 1000
        self.call_cores = self.calls * figures["call"] / 1000
        self.issuing, self.serving = _workers(self.token_cores), _workers(self.call_cores)
        self.blocks, indices = self._blocks()
        reserved_hours = (BLOCK_LIFETIME + MAX_LIFETIME + 2 * LEEWAY) / 3600
        self.lists = max(1, ceil(indices * reserved_hours / LIST_SIZE))
        self.rows = self.tokens * 4 + self.blocks * 2 / 3600 + self.calls
        self.polls = self.serving * (2 / POLL_INTERVAL + self.lists / WINDOW)

    def _blocks(self) -> tuple[float, float]:
        """Return the blocks and the indices that are reserved in an hour."""
        if self.agents > CACHED_BLOCKS:
            blocks = float(self.agents * TOKENS_AN_HOUR)
            return blocks, blocks * MIN_BLOCK
        blocks = indices = 0.0
        for tokens in range(1, TOKENS_AN_HOUR + 1):
            share = comb(TOKENS_AN_HOUR, tokens) * (self.issuing - 1) ** (TOKENS_AN_HOUR - tokens)
            likelihood = share / self.issuing**TOKENS_AN_HOUR
            size, reserved, count = MIN_BLOCK, 0, 0
            while reserved < tokens:
                reserved, count, size = reserved + size, count + 1, 2 * size
            blocks += self.issuing * likelihood * count
            indices += self.issuing * likelihood * reserved
        return self.agents * blocks, self.agents * indices

    def rows_of_table(self) -> dict[str, str]:
        """Return the cells of this fleet, by the first two cells of their rows."""
        figures, audit_rows = self.figures, (self.tokens + self.calls) * 86_400
        issuing_memory = (
            figures["authserver"]
            + figures["client"] / 1024 * min(self.agents, CACHED_CLIENTS)
            + figures["block"] / 1024 * min(self.agents, CACHED_BLOCKS)
        )
        serving_memory = (
            figures["resourceserver"]
            + figures["cached_token"] / 1024 * min(self.agents, CACHED_TOKENS)
            + self.lists * LIST_SIZE / 8 / 1024**2
        )
        return {
            "Tokens a second | agents / 300 s": _short(self.tokens),
            "Calls a second | agents / 60 s": _short(self.calls),
            "Cores for tokens | tokens/s × `token`": _short(self.token_cores),
            "Cores for calls | calls/s × `call`": _short(self.call_cores),
            "Workers: authorization server (A) | cores / 60 %, at least 2 on 2 nodes": str(self.issuing),
            "Workers: resource server (R) | cores / 60 %, at least 2 on 2 nodes": str(self.serving),
            "Rows written a second | tokens/s × (3 + last use) + blocks/s × 2 + calls/s": _short(self.rows),
            "Audit rows a day | (tokens/s + calls/s) × 86,400": _short(audit_rows),
            "Audit log a day | rows × `audit_row`": f"{_short(audit_rows * figures['audit_row'])}B",
            "Blocks of status indices an hour | see below": _short(self.blocks),
            "Status lists (L) | indices/h × 2.02 h / 131,072": _short(self.lists),
            "Memory of the lists in a resource server's worker | L × 16 KiB": (
                f"{_short(self.lists * LIST_SIZE / 8 / 1024**2)} MiB"
            ),
            "Requests for lists, names and keys a second | R × (2 / 5 s + L / 60 s)": _short(self.polls),
            "Cores to answer them | requests/s × `document`": _short(self.polls * figures["document"] / 1000),
            "Cores to fetch them | requests/s × `fetch`": _short(self.polls * figures["fetch"] / 1000),
            "Cores to sign lists | L × A / 60 s × `signing`": _short(
                self.lists * self.issuing / WINDOW * figures["signing"] / 1000
            ),
            "Memory of a worker: authorization server | `authserver` + cached clients and blocks": (
                f"{issuing_memory:.0f} MiB"
            ),
            "Memory of a worker: resource server | `resourceserver` + cached tokens + lists": (
                f"{serving_memory:.0f} MiB"
            ),
        }


def _workers(cores: float) -> int:
    """Return the workers of two nodes."""
    return max(4, 2 * ceil(cores / USE / 2))


def _short(value: float) -> str:
    """Return a number with at most three significant digits, or a whole one below 100,000."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e5, "k")):
        if value >= limit:
            return f"{value / (1000 if unit == 'k' else limit):.3g} {unit}"
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def render(page: str) -> str:
    """Return the document with its table computed again."""
    figures = read_figures(page)
    columns = [Fleet(agents, figures).rows_of_table() for agents in AGENTS]
    lines = [
        f"| | Formula | {' | '.join(f'{agents:,}' for agents in AGENTS)} |",
        f"|{'---|' * (2 + len(AGENTS))}",
        *(f"| {row} | {' | '.join(column[row] for column in columns)} |" for row in columns[0]),
    ]
    before, _, rest = page.partition(BEGIN)
    return "".join([before, BEGIN, *(f"{line}\n" for line in lines), END, rest.partition(END)[2]])


def main() -> None:
    """Write the table."""
    PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
