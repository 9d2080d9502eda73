"""What the resource server measures."""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

from mcp_types.version import KNOWN_PROTOCOL_VERSIONS

from gatehouse.resourceserver import json_rpc
from gatehouse.resourceserver.bearer.gate import ABORTED, GateMetrics
from gatehouse.resourceserver.bearer.mcp_request import METHODS, NOTIFICATIONS
from gatehouse.resourceserver.bearer.refusal import Cause
from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.dispatch.tools import TOOL_ERROR
from gatehouse.resourceserver.settings import Settings
from gatehouse.resourceserver.upstream.drift import ToolState
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.status_list import MAX_LISTS
from gatehouse.shared.service.metrics import SERVER_METRICS, Meter, Metric, ServerMetrics, rate_limited

ERROR_CODES: Final = tuple(sorted(code for code in vars(json_rpc).values() if isinstance(code, int)))
"""The codes of the JSON-RPC errors that this server answers with."""

GATE_DECISIONS: Final = Metric(
    "counter",
    "gatehouse_gate_decisions_total",
    "Requests to the MCP endpoint, by the decision of the gate.",
    {
        "outcome": ("allowed", "refused", "failed", ABORTED),
        # 0: none was sent.
        "status": (0, 200, 202, 400, 401, 403, 404, 405, 406, 413, 415, 429, 500, 503),
        "reason": tuple(map(str, Cause)),
        # Of RESOURCESERVER_METRICS_CLIENTS.
        "client_id": (),
    },
)
OPERATION_DURATION: Final = Metric(
    "histogram",
    "mcp_server_operation_duration_seconds",
    "MCP requests and notifications, refused ones included.",
    {
        "mcp_method_name": tuple(sorted(METHODS | NOTIFICATIONS)),
        # The tools of the catalogue.
        "gen_ai_tool_name": (),
        "gen_ai_operation_name": ("execute_tool",),
        "error_type": (TOOL_ERROR, ABORTED, *ERROR_CODES),
        "mcp_protocol_version": KNOWN_PROTOCOL_VERSIONS,
        "network_transport": ("tcp",),
        "rpc_response_status_code": ERROR_CODES,
    },
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 120, 300),
)
VERIFIER_CACHE: Final = Metric(
    "counter",
    "gatehouse_verifier_cache_total",
    "Tokens to verify, by whether their signature was verified before.",
    {"result": ("hit", "miss")},
)
RATE_LIMITED: Final = rate_limited("calls", "tool_calls", "concurrent_calls")
KEY_SET_FETCHED: Final = Metric(
    "gauge",
    "gatehouse_key_set_fetched_timestamp_seconds",
    "Last successful fetch of the issuer's key set: the oldest of all workers, 0 if one has none yet.",
    merged="livemin",
)
STATUS_LISTS_FETCHED: Final = Metric(
    "gauge",
    "gatehouse_status_lists_fetched_timestamp_seconds",
    "Last successful fetch of all status lists: the oldest of all workers, 0 if one has none yet.",
    merged="livemin",
)
STATUS_LISTS: Final = Metric(
    "gauge",
    "gatehouse_status_lists",
    f"Status lists that the issuer names, of {MAX_LISTS} at most that a worker keeps: the most of all workers.",
    merged="livemax",
)

UPSTREAM_TOOLS: Final = Metric(
    "gauge",
    "gatehouse_upstream_tools",
    "Tools of the upstream and of its policy, by whether they are served, as a worker last found: the most of all.",
    {"state": tuple(map(str, ToolState))},
    merged="livemax",
)
UPSTREAM_LISTED: Final = Metric(
    "gauge",
    "gatehouse_upstream_listed_timestamp_seconds",
    "Last list of tools that the upstream gave: the oldest of all workers, 0 if one has none yet.",
    merged="livemin",
)

METRICS: Final = (
    GATE_DECISIONS,
    OPERATION_DURATION,
    VERIFIER_CACHE,
    RATE_LIMITED,
    KEY_SET_FETCHED,
    STATUS_LISTS_FETCHED,
    STATUS_LISTS,
    UPSTREAM_TOOLS,
    UPSTREAM_LISTED,
    *SERVER_METRICS,
)


class Metrics(ServerMetrics):
    """The time series of one process."""

    def __init__(self, settings: Settings, catalogue: Catalogue) -> None:
        self._meter = meter = Meter(enabled=settings.metrics_bind is not None)
        super().__init__(meter, settings.metrics_clients)
        self.gate = GateMetrics(
            meter.counters(GATE_DECISIONS, client_id=self.clients.values()),
            meter.histograms(OPERATION_DURATION, gen_ai_tool_name=(*catalogue.tools, *catalogue.withheld)),
            self.clients,
        )
        lookups = meter.counters(VERIFIER_CACHE)
        self.cache_hits, self.cache_misses = lookups[("hit",)], lookups[("miss",)]
        self.rate_limited = meter.counters(RATE_LIMITED)
        self.key_set_fetched = meter.gauge(KEY_SET_FETCHED)
        self._status_lists_fetched = meter.gauge(STATUS_LISTS_FETCHED)
        self._status_lists = meter.gauge(STATUS_LISTS)

    def report_status_lists(self, clock: Clock) -> Callable[[int], None]:
        """Return what is called with the number of status lists after each poll in which every fetch succeeded."""

        def report(lists: int) -> None:
            self._status_lists_fetched.set(clock())
            self._status_lists.set(lists)

        return report

    def report_upstream(self, clock: Clock) -> Callable[[Mapping[str, ToolState]], None]:
        """Return what is called with the state of each tool after each list that the upstream gave.

        Other servers have no metrics of an upstream, which would look like one that never answers.
        """
        tools, listed = self._meter.gauges(UPSTREAM_TOOLS), self._meter.gauge(UPSTREAM_LISTED)

        def report(states: Mapping[str, ToolState]) -> None:
            numbers = Counter(states.values())
            for state in ToolState:
                tools[(state,)].set(numbers[state])
            listed.set(clock())

        return report
