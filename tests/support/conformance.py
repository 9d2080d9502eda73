"""The official MCP conformance suite: its runs, its tool scenarios, and the tables of docs/conformance.md."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from local_stack import LocalStack

from support.bearer_proxy import bearer_proxy
from support.interop import DOCUMENT, NODE_MODULES, run, unlimited_token

SUITE = NODE_MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"

_CALLS = (
    "tools-list",
    "tools-call-simple-text",
    "tools-call-image",
    "tools-call-audio",
    "tools-call-embedded-resource",
    "tools-call-mixed-content",
    "tools-call-error",
    "tools-call-with-progress",
)
_CALLS_WITH_REQUESTS = ("tools-call-with-logging", "tools-call-sampling", "tools-call-elicitation")
TOOL_SCENARIOS: Mapping[str, tuple[str, ...]] = {
    "2025-06-18": (*_CALLS, *_CALLS_WITH_REQUESTS),
    "2025-11-25": (
        *_CALLS,
        *_CALLS_WITH_REQUESTS,
        "json-schema-2020-12",
        "elicitation-sep1034-defaults",
        "elicitation-sep1330-enums",
        "server-sse-polling",
        "server-sse-multiple-streams",
    ),
    "2026-07-28": (
        *_CALLS,
        "json-schema-2020-12",
        "server-sse-multiple-streams",
        "server-stateless",
        "http-header-validation",
        "http-custom-header-server-validation",
        "input-required-result-basic-elicitation",
        "input-required-result-basic-sampling",
        "input-required-result-basic-list-roots",
        "input-required-result-request-state",
        "input-required-result-multiple-input-requests",
        "input-required-result-multi-round",
        "input-required-result-missing-input-response",
        "input-required-result-result-type",
        "input-required-result-unsupported-methods",
        "input-required-result-tampered-state",
        "input-required-result-capability-check",
        "input-required-result-ignore-extra-params",
        "input-required-result-validate-input",
    ),
}
"""By protocol version, every server scenario that lists or calls tools. Version 2025-03-26 has none."""


@dataclass(frozen=True)
class Check:
    """One check of the suite and its outcome."""

    id: str
    status: str
    message: str


Scenarios = dict[str, list[Check]]
"""The checks of each scenario, in the order of execution."""


@contextmanager
def admitted(stack: LocalStack, *options: str) -> Iterator[str]:
    """Yield the URL of a proxy that adds a token with every scope, because the suite cannot send one.

    `options` are those of `authserver client create`.
    """
    with bearer_proxy(stack.resource, unlimited_token(stack, *options)) as url:
        yield url


def run_server_scenarios(node: str, url: str, version: str, folder: Path) -> Scenarios:
    """Run every server scenario of a protocol version. The results are kept in the folder."""
    command = [node, str(SUITE), "server", "--url", url, "--suite", "all", "--spec-version", version, "-o", "out"]
    run(command, folder)
    return results(folder / "out", "server")


def run_tool_scenarios(node: str, url: str, version: str, folder: Path) -> Scenarios:
    """Run every server scenario of a protocol version, and return the results of the tool scenarios."""
    found = run_server_scenarios(node, url, version, folder)
    return {name: found[name] for name in TOOL_SCENARIOS[version]}


def results(folder: Path, kind: str) -> Scenarios:
    """Read the result files of a run."""
    named = re.compile(rf"{kind}-(?P<scenario>.+?)-(?P<started>\d{{4}}-\d\d-\d\dT[\d-]+Z)")
    found = [
        (match["started"], match["scenario"], path) for path in folder.iterdir() if (match := named.match(path.name))
    ]
    return {
        scenario: [
            Check(check["id"], check["status"], check.get("errorMessage") or "")
            for check in json.loads((path / "checks.json").read_text(encoding="utf-8"))
        ]
        for _, scenario, path in sorted(found)
    }


def count(checks: list[Check]) -> Counter[str]:
    """Return the number of checks by status."""
    return Counter(check.status for check in checks)


def passed(checks: list[Check]) -> bool:
    """Return whether a scenario passed something, and has neither a failure nor a warning."""
    counts = count(checks)
    return bool(counts["SUCCESS"]) and not counts["FAILURE"] and not counts["WARNING"]


def cell(checks: list[Check] | None) -> str:
    """Return the number of checks that passed, and the total if some failed."""
    if checks is None:
        return "-"
    counts = count(checks)
    right, failed, warnings = counts["SUCCESS"], counts["FAILURE"], counts["WARNING"]
    text = f"{right} of {right + failed}" if failed else str(right)
    return text + (f", {warnings} warned" if warnings else "")


def require_rows(heading: str, rows: list[str]) -> None:
    """Assert that the table under a heading of the document has exactly these rows; print them otherwise."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    table = [line for line in section.splitlines() if line.startswith("| ")][1:]
    assert table == rows, "\n".join([f"docs/conformance.md, {heading}, must be:", *rows])
