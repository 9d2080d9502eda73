"""What the resource server counts: every request to the MCP endpoint once, with OpenTelemetry's attributes."""

import inspect
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from support.clock import FakeClock
from support.databases import Template
from support.resourceserver import LIST, PING, ResourceServer, call_of, modern_request, running_resource_server

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.bearer.refusal import Cause
from gatehouse.resourceserver.catalogue import Catalogue, Scope, ToolFailed, ToolGroup
from gatehouse.resourceserver.metrics import METRICS, UPSTREAM_LISTED, UPSTREAM_TOOLS
from gatehouse.shared.protocol import claims, jws, token_validation
from gatehouse.shared.service.metrics import OTHER

pytestmark = pytest.mark.anyio

DECISIONS = "gatehouse_gate_decisions_total"
OPERATIONS = "mcp_server_operation_duration_seconds_count"
LEGACY, MODERN = "2025-11-25", "2026-07-28"


class Done(BaseModel):
    """The result of the tools."""

    text: str = "done"


def small_catalogue() -> Catalogue:
    group = ToolGroup()

    @group.tool(scopes=["env:read"], read_only=True)
    async def work() -> Done:
        """Do the work."""
        return Done()

    @group.tool(scopes=["env:read"], read_only=True)
    async def fail() -> Done:
        """Fail in a way that an agent can fix."""
        raise ToolFailed("not today")

    @group.tool(scopes=["env:write"], read_only=True)
    async def change() -> Done:
        """Need another scope."""
        return Done()

    return Catalogue("small", [Scope("env:read", "Read."), Scope("env:write", "Write.")], [group])


@pytest.fixture
async def measured(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock, anyio_backend: str
) -> AsyncIterator[ResourceServer]:
    """A server that measures, and may name the client agent_1."""
    settings = {"metrics_bind": "127.0.0.1:9101", "metrics_clients": "agent_1 agent_2"}
    async with running_resource_server(
        tmp_path / "measured", resourceserver_template, clock, small_catalogue(), **settings
    ) as server:
        yield server


def series(server: ResourceServer, name: str) -> dict[tuple[str, ...], float]:
    """Return the values of a metric by the values of its labels, in the order of the definition, without zeros."""
    registry = server.services.metrics.registry
    assert registry is not None
    [metric] = [metric for metric in METRICS if name.removesuffix("_count") == metric.name]
    return {
        tuple(sample.labels[label] for label in metric.labels): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name == name and sample.value
    }


async def call(server: ResourceServer, version: str, tool: str, token: str | None) -> int:
    """Call a tool in a protocol version, and return the HTTP status."""
    if version == LEGACY:
        return (await server.post(call_of(tool), token, {"MCP-Protocol-Version": LEGACY})).status_code
    body, headers = modern_request("tools/call", name=tool, arguments={})
    return (await server.post(body, token, headers)).status_code


@pytest.mark.both_ways
@pytest.mark.parametrize("version", [LEGACY, MODERN])
async def test_a_call_is_counted_once_by_what_became_of_it(measured: ResourceServer, version: str) -> None:
    token = measured.issuer.token("env:read")
    for tool, status in (("work", 200), ("work", 200), ("fail", 200), ("change", 403), ("nothing", 400)):
        assert await call(measured, version, tool, token) == status
    assert await call(measured, version, "work", None) == 401

    def operation(tool: str, error: str = "", code: str = "", version: str = version) -> tuple[str, ...]:
        return ("tools/call", tool, "execute_tool", error, version, "tcp", code)

    forbidden, unknown, unauthenticated = (
        str(code) for code in (json_rpc.INSUFFICIENT_SCOPE, json_rpc.INVALID_PARAMS, json_rpc.UNAUTHENTICATED)
    )
    assert series(measured, OPERATIONS) == {
        operation("work"): 2,
        operation("fail", "tool_error"): 1,
        operation("change", forbidden, forbidden): 1,
        operation(OTHER, unknown, unknown): 1,
        operation("work", unauthenticated, unauthenticated, version=""): 1,
    }
    assert series(measured, DECISIONS) == {
        ("allowed", "200", "", "agent_1"): 3,
        ("refused", "403", "insufficient_scope", "agent_1"): 1,
        ("refused", "400", "unknown_tool", "agent_1"): 1,
        ("refused", "401", "no_token", ""): 1,
    }


async def test_an_error_that_the_sdk_answers_has_its_code(measured: ResourceServer) -> None:
    token = measured.issuer.token()
    body = {"jsonrpc": "2.0", "id": 7, "method": "tools/list", "params": {"cursor": "page-2"}}
    response = await measured.post(body, token, {"MCP-Protocol-Version": LEGACY})
    code = str(response.json()["error"]["code"])
    body, headers = modern_request("tools/list")
    refused = await measured.post(body, token, {**headers, "Mcp-Method": "ping"})
    assert refused.status_code == 400
    assert series(measured, OPERATIONS) == {
        ("tools/list", "", "", code, LEGACY, "tcp", code): 1,
        ("tools/list", "", "", OTHER, MODERN, "tcp", ""): 1,
    }
    assert series(measured, DECISIONS) == {
        ("allowed", "200", "", "agent_1"): 1,
        ("allowed", "400", "", "agent_1"): 1,
    }


@pytest.mark.threat("T-160")
async def test_what_a_caller_sends_is_no_label(measured: ResourceServer) -> None:
    token = measured.issuer.token(client_id="agent_9", sub="agent_9")
    odd = 'gths_0123456789abcdef"} 1'
    await measured.post({**PING, "method": odd}, token, {"MCP-Protocol-Version": odd})
    await measured.post({**PING, "method": odd})
    await measured.post(call_of(odd), token)
    await measured.post(b"{", token)
    labels = [*series(measured, OPERATIONS), *series(measured, DECISIONS)]
    assert len(labels) == 8
    assert not [each for each in labels if odd in each or "agent_9" in each]
    assert sum(series(measured, DECISIONS).values()) == sum(series(measured, OPERATIONS).values()) == 4


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"iss": "https://evil.example.com"}, Cause.ISSUER),
        ({"aud": "https://other.example.com/mcp"}, Cause.AUDIENCE),
        ({"exp": 1_700_000_000, "iat": 1_699_999_900}, Cause.EXPIRED),
        ({"iat": 1_800_000_600, "exp": 1_800_000_700}, Cause.NOT_YET_VALID),
        ({"exp": 1_900_000_000}, Cause.CLAIMS),
        ({"scope": None}, Cause.CLAIMS),
        ({"nbf": 1}, Cause.CLAIMS),
        ({"status": None}, Cause.STATUS),
    ],
    ids=str,
)
async def test_a_refused_token_is_counted_by_its_reason(
    measured: ResourceServer, changes: dict[str, object], reason: Cause
) -> None:
    assert (await measured.post(PING, measured.issuer.token(**changes))).status_code == 401
    assert {labels[2] for labels in series(measured, DECISIONS)} == {reason}


async def test_a_forged_a_malformed_and_a_revoked_token_have_their_own_reasons(measured: ResourceServer) -> None:
    token = measured.issuer.token()
    foreign = jws.SigningKey.generate("ES256").sign("at+jwt", measured.issuer.claims())
    other = measured.issuer.token()
    forged = token.rpartition(".")[0] + "." + other.rpartition(".")[2]
    revoked = measured.issuer.token(status={"status_list": {"idx": 900, "uri": LIST}})
    measured.issuer.revoke(900)
    await measured.services.statuses.refresh()
    for sent in ("not a token", foreign, forged, revoked):
        assert (await measured.post(PING, sent)).status_code == 401
    assert [labels[2] for labels in series(measured, DECISIONS)] == [
        Cause.MALFORMED_TOKEN,
        Cause.UNKNOWN_KEY,
        Cause.SIGNATURE,
        Cause.REVOKED,
    ]


async def test_a_request_that_cannot_be_decided_counts_as_failed(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    async with running_resource_server(
        tmp_path, resourceserver_template, clock, small_catalogue(), metrics_bind="127.0.0.1:9101"
    ) as server:
        clock.advance(2000)
        server.issuer.away = True
        assert (await server.post(PING, server.issuer.token())).status_code == 503
        assert series(server, DECISIONS) == {("failed", "503", "status_unavailable", ""): 1}


async def test_a_429_is_counted_by_its_limit(
    tmp_path: Path, resourceserver_template: Template, clock: FakeClock
) -> None:
    settings = {
        "metrics_bind": "127.0.0.1:9101",
        "workers": 1,
        "limit_calls": "2/minute",
        "limit_tool_calls": "1/minute",
    }
    async with running_resource_server(
        tmp_path, resourceserver_template, clock, small_catalogue(), **settings
    ) as server:
        token = server.issuer.token("env:read")
        assert [await call(server, LEGACY, "work", token) for _ in range(3)] == [200, 429, 429]
        assert series(server, "gatehouse_rate_limited_total") == {("tool_calls",): 1, ("calls",): 1}
        assert series(server, DECISIONS) == {
            ("allowed", "200", "", ""): 1,
            ("refused", "429", "limit_tool_calls", ""): 1,
            ("refused", "429", "limit_calls", ""): 1,
        }


async def test_the_cache_of_the_verifier_is_counted(measured: ResourceServer) -> None:
    token = measured.issuer.token()
    for _ in range(3):
        await measured.post(PING, token)
    await measured.post(PING, "not-a-token")
    assert series(measured, "gatehouse_verifier_cache_total") == {("hit",): 2, ("miss",): 2}


async def test_the_last_fetches_are_reported(measured: ResourceServer) -> None:
    started = measured.issuer.clock()
    await measured.services.keys.refresh()
    await measured.services.statuses.refresh()
    measured.issuer.clock.advance(60)
    measured.issuer.away = True
    await measured.services.keys.refresh()
    await measured.services.statuses.refresh()
    names = ("gatehouse_key_set_fetched_timestamp_seconds", "gatehouse_status_lists_fetched_timestamp_seconds")
    assert [series(measured, name) for name in names] == [{(): started}, {(): started}]
    measured.issuer.away = False
    await measured.services.keys.refresh()
    await measured.services.statuses.refresh()
    assert [series(measured, name) for name in names] == [{(): started + 60}, {(): started + 60}]


async def test_the_number_of_status_lists_is_reported(measured: ResourceServer) -> None:
    """A resource server keeps a limited number of them."""
    await measured.services.statuses.refresh()
    assert series(measured, "gatehouse_status_lists") == {(): 1}
    measured.issuer.lists[LIST.replace("0123", "4567")] = bytearray(8)
    await measured.services.statuses.refresh()
    assert series(measured, "gatehouse_status_lists") == {(): 2}


def test_every_cause_that_the_protocol_names_is_in_the_table() -> None:
    """The verifier would raise ValueError for another one."""
    defaults = [
        inspect.signature(error).parameters["cause"].default for error in (claims.InvalidClaims, jws.InvalidToken)
    ]
    source = inspect.getsource(token_validation) + inspect.getsource(jws) + inspect.getsource(claims)
    named = {cause for cause in Cause if f', "{cause}")' in source}
    assert {*map(Cause, defaults)} == {Cause.CLAIMS, Cause.MALFORMED_TOKEN}
    assert named == {Cause.ISSUER, Cause.AUDIENCE, Cause.EXPIRED, Cause.NOT_YET_VALID, Cause.SIGNATURE}


async def test_every_metric_is_listed_for_the_documentation(measured: ResourceServer) -> None:
    registry = measured.services.metrics.registry
    assert registry is not None
    created = {f"{family.name}_total" if family.type == "counter" else family.name for family in registry.collect()}
    measured.services.metrics.report_upstream(measured.issuer.clock)
    of_a_gateway = {UPSTREAM_TOOLS.name, UPSTREAM_LISTED.name}
    assert of_a_gateway <= {family.name for family in registry.collect()}
    assert created | of_a_gateway == {metric.name for metric in METRICS}
    assert created & of_a_gateway == set()
