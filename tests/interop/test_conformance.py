"""The official MCP conformance suite. docs/conformance.md must state its results."""

import re
from pathlib import Path
from typing import Any

import pytest
from local_stack import LocalStack, free_port
from support.conformance import (
    SUITE,
    Check,
    Scenarios,
    admitted,
    cell,
    count,
    require_rows,
    results,
    run_server_scenarios,
)
from support.interop import run

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


def _reason(check: Check) -> str:
    """Return the accepted reason for a failure. Raises AssertionError if there is none."""
    known = [reason for reason, pattern in REASONS.items() if pattern.search(check.message)]
    assert known, check
    return known[0]


@pytest.fixture(scope="module")
def runs(
    node: str, stack: LocalStack, workspace_id: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Scenarios]:
    """The suite's results for this server: every scenario of every protocol version."""
    with admitted(stack, "--claim", f"workspace_id={workspace_id}") as url:
        return {spec: run_server_scenarios(node, url, spec, tmp_path_factory.mktemp(spec)) for spec in VERSIONS}


def test_the_document_states_the_suites_counts(runs: dict[str, Scenarios]) -> None:
    rows = []
    for spec, scenarios in runs.items():
        counts = count([check for checks in scenarios.values() for check in checks])
        clean = sum(not count(checks)["FAILURE"] for checks in scenarios.values())
        rows.append(
            f"| {spec} | {len(scenarios)} | {clean} | {counts['SUCCESS']} | {counts['FAILURE']} | {counts['WARNING']} |"
        )
    require_rows("Counts", rows)


def test_the_document_lists_every_scenario_with_its_failures(runs: dict[str, Scenarios]) -> None:
    rows = []
    for name in dict.fromkeys(name for scenarios in runs.values() for name in scenarios):
        checked = [scenarios.get(name) for scenarios in runs.values()]
        failed = [check for checks in checked for check in checks or [] if check.status == "FAILURE"]
        reasons = " and ".join(sorted({_reason(check) for check in failed}))
        rows.append((reasons, f"| {name} | {' | '.join(map(cell, checked))} | {reasons or '-'} |"))
    require_rows("Scenarios", [row for _, row in sorted(rows, key=lambda row: row[0])])


def test_the_document_lists_the_failed_checks_of_passing_scenarios(
    runs: dict[str, Scenarios],
) -> None:
    rows = [
        f"| {name} | `{check.id}` | {_reason(check)} |"
        for scenarios in runs.values()
        for name, checks in scenarios.items()
        if count(checks)["SUCCESS"] > 1
        for check in checks
        if check.status == "FAILURE"
    ]
    require_rows("Scenarios that pass in part", rows)


def test_the_authorization_server_fails_only_for_the_code_grant(
    node: str, stack: LocalStack, readers: dict[str, Any], home: Path
) -> None:
    credentials = readers["secret"]
    client = ("--client-id", credentials["client_id"], "--client-secret", credentials["client_secret"])
    where = ("--url", stack.issuer, "--resource", stack.resource, "-p", str(free_port()), "-o", "out")
    run([node, str(SUITE), "authorization", *where, *client], home)
    found = results(home / "out", "authorization-server")
    assert {name: [(check.status, check.message) for check in checks] for name, checks in found.items()} == {
        "authorization-server-metadata-endpoint": [("FAILURE", NO_CODE_GRANT), ("WARNING", NO_METADATA_DOCUMENTS)],
        "authorization-code-grant": [("FAILURE", "Invalid authorization server metadata")],
    }
    rows = [f"| {name} | {check.status} | {check.message} |" for name, checks in found.items() for check in checks]
    require_rows("The authorization server", rows)
