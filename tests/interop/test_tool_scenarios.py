"""The suite's tool scenarios on its fixture server, without a gateway. docs/conformance.md has the results."""

import pytest
from support.conformance import (
    TOOL_SCENARIOS,
    Scenarios,
    cell,
    passed,
    require_rows,
    run_tool_scenarios,
)
from support.interop import serving

ENOUGH = 0.9
"""The share of the tool scenarios that the fixture server must pass, so that a gateway in front of it can be judged."""


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


@pytest.mark.parametrize("version", TOOL_SCENARIOS)
def test_the_fixture_server_passes_the_tool_scenarios(direct: dict[str, Scenarios], version: str) -> None:
    failed = {name: checks for name, checks in direct[version].items() if not passed(checks)}
    assert len(failed) <= (1 - ENOUGH) * len(TOOL_SCENARIOS[version]), failed


def test_the_document_lists_the_tool_scenarios(direct: dict[str, Scenarios]) -> None:
    names = dict.fromkeys(name for scenarios in direct.values() for name in scenarios)
    rows = [f"| {name} | {' | '.join(cell(found.get(name)) for found in direct.values())} |" for name in names]
    require_rows("Tool scenarios", rows)
