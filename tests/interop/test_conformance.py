"""The official MCP conformance suite. docs/conformance.md must state its results."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, free_port
from support.bearer_proxy import bearer_proxy
from support.interop import DOCUMENT, NODE_MODULES, run

SUITE = NODE_MODULES / "@modelcontextprotocol" / "conformance" / "dist" / "index.js"
VERSIONS = ("2025-03-26", "2025-06-18", "2025-11-25", "2026-07-28")

FIXTURE, RESOURCE, FEATURE = "fixture tool", "fixture resource", "not offered"
REASONS = {
    FIXTURE: re.compile(
        r"There is no such tool"
        r"|Not testable: server (exposes no|does not list the diagnostic) tool"
        r"|Tool 'json_schema_2020_12_tool' not found"
        r"|Expected InputRequiredResult with inputRequests"
        r"|Prerequisite failed: could not get initial InputRequiredResult"
    ),
    RESOURCE: re.compile(r'"uri":"test://|There is no such resource'),
    FEATURE: re.compile(r"This server does not have the method"),
}
"""Accepted reasons for a failed check, by message. A failure with any other message is a defect."""

NO_CODE_GRANT = ", ".join(
    f'Response body does not include valid "{member}" claim'
    for member in ("response_types_supported", "code_challenge_methods_supported")
)
NO_METADATA_DOCUMENTS = 'Authorization server metadata does not include "client_id_metadata_document_supported"'


@dataclass(frozen=True)
class Check:
    """One check of the suite and its outcome."""

    id: str
    status: str
    message: str

    @property
    def reason(self) -> str:
        """The accepted reason for a failure. Raises AssertionError if there is none."""
        known = [reason for reason, pattern in REASONS.items() if pattern.search(self.message)]
        assert known, self
        return known[0]


Scenarios = dict[str, list[Check]]


def _results(folder: Path, kind: str) -> Scenarios:
    """Read the result files of a run, in the order of execution."""
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


@pytest.fixture(scope="module")
def proxy(stack: LocalStack, workspace_id: str, catalogue: dict[str, Any]) -> Iterator[str]:
    """URL of a proxy that adds a token with every scope, because the suite cannot send one."""
    scope = " ".join(declared["scope"] for declared in catalogue["scopes"])
    client_id = stack.create_client("conformance", scope, "--claim", f"workspace_id={workspace_id}")["client_id"]
    issued = stack.run_json("authserver", "token", "issue", "--client", client_id, "--resource", stack.resource)
    with bearer_proxy(stack.resource, issued["access_token"]) as url:
        yield url


@pytest.fixture(scope="module")
def runs(node: str, proxy: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenarios]:
    """The suite's results for this server: every scenario of every protocol version."""
    results = {}
    for spec in VERSIONS:
        folder = tmp_path_factory.mktemp(spec)
        run([node, str(SUITE), "server", "--url", proxy, "--suite", "all", "--spec-version", spec, "-o", "out"], folder)
        results[spec] = _results(folder / "out", "server")
    return results


def _table(heading: str) -> list[str]:
    """Return the rows of the table under a heading of the document, without the header row."""
    section = DOCUMENT.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    return [line for line in section.splitlines() if line.startswith("| ")][1:]


def _count(checks: list[Check]) -> Counter[str]:
    return Counter(check.status for check in checks)


def _cell(checks: list[Check] | None) -> str:
    if checks is None:
        return "-"
    counts = _count(checks)
    passed, failed, warnings = counts["SUCCESS"], counts["FAILURE"], counts["WARNING"]
    cell = f"{passed} of {passed + failed}" if failed else str(passed)
    return cell + (f", {warnings} warned" if warnings else "")


def _require_rows(heading: str, rows: list[str]) -> None:
    """Assert that the document has exactly these rows under a heading; print them otherwise."""
    assert _table(heading) == rows, "\n".join([f"docs/conformance.md, {heading}, must be:", *rows])


def test_the_document_states_the_suites_counts(runs: dict[str, Scenarios]) -> None:
    rows = []
    for spec, scenarios in runs.items():
        counts = _count([check for checks in scenarios.values() for check in checks])
        clean = sum(not _count(checks)["FAILURE"] for checks in scenarios.values())
        rows.append(
            f"| {spec} | {len(scenarios)} | {clean} | {counts['SUCCESS']} | {counts['FAILURE']} | {counts['WARNING']} |"
        )
    _require_rows("Counts", rows)


def test_the_document_lists_every_scenario_with_its_failures(runs: dict[str, Scenarios]) -> None:
    rows = []
    for name in dict.fromkeys(name for scenarios in runs.values() for name in scenarios):
        results = [scenarios.get(name) for scenarios in runs.values()]
        failed = [check for checks in results for check in checks or [] if check.status == "FAILURE"]
        reasons = " and ".join(sorted({check.reason for check in failed}))
        rows.append((reasons, f"| {name} | {' | '.join(map(_cell, results))} | {reasons or '-'} |"))
    _require_rows("Scenarios", [row for _, row in sorted(rows, key=lambda row: row[0])])


def test_the_document_lists_the_failed_checks_of_passing_scenarios(
    runs: dict[str, Scenarios],
) -> None:
    rows = [
        f"| {name} | `{check.id}` | {check.reason} |"
        for scenarios in runs.values()
        for name, checks in scenarios.items()
        if _count(checks)["SUCCESS"] > 1
        for check in checks
        if check.status == "FAILURE"
    ]
    _require_rows("Scenarios that pass in part", rows)


def test_the_authorization_server_fails_only_for_the_code_grant(
    node: str, stack: LocalStack, readers: dict[str, Any], home: Path
) -> None:
    credentials = readers["secret"]
    client = ("--client-id", credentials["client_id"], "--client-secret", credentials["client_secret"])
    where = ("--url", stack.issuer, "--resource", stack.resource, "-p", str(free_port()), "-o", "out")
    run([node, str(SUITE), "authorization", *where, *client], home)
    results = _results(home / "out", "authorization-server")
    assert {name: [(check.status, check.message) for check in checks] for name, checks in results.items()} == {
        "authorization-server-metadata-endpoint": [("FAILURE", NO_CODE_GRANT), ("WARNING", NO_METADATA_DOCUMENTS)],
        "authorization-code-grant": [("FAILURE", "Invalid authorization server metadata")],
    }
    rows = [f"| {name} | {check.status} | {check.message} |" for name, checks in results.items() for check in checks]
    _require_rows("The authorization server", rows)
