"""The suite's tool scenarios: on its fixture server, and behind the gateway. docs/conformance.md has the results."""

import sys
from contextlib import ExitStack

import pytest
from support.conformance import (
    TOOL_SCENARIOS,
    Check,
    Scenarios,
    admitted,
    cell,
    passed,
    require_rows,
    run_tool_scenarios,
)
from support.gateway import gateway
from support.interop import FOLDER, serving

ENOUGH = 0.9
"""The share of the tool scenarios that the fixture server must pass, so that a gateway in front of it can be judged."""

UPSTREAMS = {
    "2026-07-28 over HTTP": ["--only", "2026-07-28"],
    "2025-11-25 over HTTP, with sessions": ["--only", "2025-11-25"],
    "2025-11-25 over HTTP, without sessions": ["--only", "2025-11-25", "--stateless"],
    "both versions on stdio": None,
}
"""The options of the fixture server behind the gateway."""

REQUESTS = "requests of the server to the client"
LOGGING = "log messages"
INPUT = "results that request input"
NOT_CARRIED = {
    "tools-call-with-logging": LOGGING,
    "tools-call-sampling": REQUESTS,
    "tools-call-elicitation": REQUESTS,
    "elicitation-sep1034-defaults": REQUESTS,
    "elicitation-sep1330-enums": REQUESTS,
    "server-sse-polling": "sessions",
    "server-sse-multiple-streams": "sessions",
    "server-stateless": INPUT,
    "input-required-result-basic-elicitation": INPUT,
    "input-required-result-basic-sampling": INPUT,
    "input-required-result-basic-list-roots": INPUT,
    "input-required-result-request-state": INPUT,
    "input-required-result-multiple-input-requests": INPUT,
    "input-required-result-multi-round": INPUT,
    "input-required-result-missing-input-response": INPUT,
    "input-required-result-result-type": INPUT,
    "input-required-result-tampered-state": INPUT,
    "input-required-result-capability-check": INPUT,
    "input-required-result-ignore-extra-params": INPUT,
    "input-required-result-validate-input": INPUT,
}
"""The scenarios that the fixture server passes, and that need what the gateway does not carry."""


@pytest.fixture(scope="module")
def direct(node: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scenarios]:
    """The results of the tool scenarios without a gateway, by protocol version."""
    runs = {}
    for version in TOOL_SCENARIOS:
        folder = tmp_path_factory.mktemp(version)
        served = version if version == "2026-07-28" else "2025-11-25"
        with serving("fixture_server.py", "--only", served, log=folder / "server.log") as url:
            runs[version] = run_tool_scenarios(node, url, version, folder)
    return runs


@pytest.fixture(scope="module")
def behind(node: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Scenarios]]:
    """The results of the tool scenarios behind the gateway: by upstream, and by the version of the caller."""
    runs = {}
    for name, options in UPSTREAMS.items():
        folder = tmp_path_factory.mktemp("behind")
        with ExitStack() as stack:
            if options is None:
                upstream = ["--", sys.executable, str(FOLDER / "servers" / "fixture_server.py"), "stdio"]
            else:
                server = serving("fixture_server.py", *options, log=folder / "server.log")
                upstream = ["--url", stack.enter_context(server)]
            url = stack.enter_context(admitted(stack.enter_context(gateway(folder / "gateway", *upstream))))
            runs[name] = {
                version: run_tool_scenarios(node, url, version, tmp_path_factory.mktemp(version))
                for version in TOOL_SCENARIOS
            }
    return runs


@pytest.mark.parametrize("version", TOOL_SCENARIOS)
def test_the_fixture_server_passes_the_tool_scenarios(direct: dict[str, Scenarios], version: str) -> None:
    failed = {name: checks for name, checks in direct[version].items() if not passed(checks)}
    assert len(failed) <= (1 - ENOUGH) * len(TOOL_SCENARIOS[version]), failed


def test_the_document_lists_the_tool_scenarios(direct: dict[str, Scenarios]) -> None:
    names = dict.fromkeys(name for scenarios in direct.values() for name in scenarios)
    rows = [f"| {name} | {' | '.join(cell(found.get(name)) for found in direct.values())} |" for name in names]
    require_rows("Tool scenarios", rows)


@pytest.fixture(scope="module")
def lost(
    direct: dict[str, Scenarios], behind: dict[str, dict[str, Scenarios]]
) -> dict[str, dict[tuple[str, str], list[Check]]]:
    """By upstream, the scenarios that pass without the gateway only, with the caller's version, and what failed."""
    return {
        upstream: {
            (name, version): [check for check in checks if check.status in {"FAILURE", "WARNING"}]
            for version, scenarios in runs.items()
            for name, checks in scenarios.items()
            if passed(direct[version][name]) and not passed(checks)
        }
        for upstream, runs in behind.items()
    }


@pytest.mark.parametrize("upstream", UPSTREAMS)
def test_the_gateway_loses_only_what_it_does_not_carry(
    lost: dict[str, dict[tuple[str, str], list[Check]]], upstream: str
) -> None:
    """In every pair of the caller's version and the upstream's."""
    assert {scenario: failed for scenario, failed in lost[upstream].items() if scenario[0] not in NOT_CARRIED} == {}


def test_the_document_states_the_counts_behind_the_gateway(behind: dict[str, dict[str, Scenarios]]) -> None:
    rows = []
    for upstream, runs in behind.items():
        counts = [f"{sum(map(passed, found.values()))} of {len(found)}" for found in runs.values()]
        rows.append(f"| {upstream} | {' | '.join(counts)} |")
    require_rows("Behind the gateway", rows)


def test_the_document_names_what_the_gateway_does_not_carry(
    lost: dict[str, dict[tuple[str, str], list[Check]]],
) -> None:
    scenarios = {scenario for found in lost.values() for scenario in found}
    rows = [
        f"| {name} | {', '.join(sorted(version for lost_name, version in scenarios if lost_name == name))} | {reason} |"
        for name, reason in NOT_CARRIED.items()
    ]
    require_rows("Not carried by the gateway", rows)
