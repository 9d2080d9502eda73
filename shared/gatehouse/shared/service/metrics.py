"""The metrics of a process: their definitions, and the time series that the code counts with.

A metric has one time series for each combination of the values of its labels. Every label has a closed table of values,
and any other value counts as `_OTHER`, so what a caller sends never becomes a label and never adds a time series.

The processes of a server count in files of one folder, whose sum `metrics_server` serves (the multiprocess mode of
prometheus_client). Without a setting METRICS_BIND, the same calls count nothing, and the library is not imported.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeVar

from gatehouse.shared.protocol.clock import Clock

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

OTHER: Final = "_OTHER"
"""The value of a label for everything that its table does not have (OpenTelemetry's name for it)."""

Value = str | int
"""The value of a label."""


class Counter(Protocol):
    """A time series that only increases."""

    def inc(self, amount: float = 1, /) -> None:
        """Add to the count."""
        ...


class Gauge(Protocol):
    """A time series that goes up and down."""

    def set(self, value: float, /) -> None:
        """Replace the value of this process."""
        ...


class Histogram(Protocol):
    """A time series of durations."""

    def observe(self, amount: float, /) -> None:
        """Count a duration, in seconds."""
        ...


UNCOUNTED: Final[Any] = SimpleNamespace(inc=lambda amount=1: None, set=lambda value: None, observe=lambda amount: None)
"""A time series of any kind that counts nothing."""

SeriesT = TypeVar("SeriesT")


@dataclass(frozen=True, slots=True)
class Metric:
    """The definition of a metric."""

    kind: Literal["counter", "gauge", "histogram"]
    name: str
    meaning: str
    """The help text, short: the library stores it with every time series."""
    labels: Mapping[str, Iterable[Value]] = field(default_factory=dict)
    """The table of each label. An empty one is known only when the server starts, such as that of the tools."""
    buckets: Sequence[float] = ()
    """Upper bounds of a histogram, in seconds."""
    merged: Literal["livesum", "livemin", "livemax", "max"] = "livesum"
    """How the values of several processes make one gauge. `live`: of the processes that run."""


class Series(dict[tuple[Value, ...], SeriesT]):
    """The time series of one metric, by the values of its labels. One that is missing is created, from the tables."""

    def __init__(self, create: Callable[[tuple[Value, ...]], SeriesT], tables: Sequence[Iterable[Value]]) -> None:
        super().__init__()
        self._create = create
        self._tables = [frozenset((*table, "", OTHER)) for table in tables]

    def __missing__(self, values: tuple[Value, ...]) -> SeriesT:
        # Only values of the tables are remembered: others are up to callers, and would fill the memory.
        known = tuple(value if value in table else OTHER for value, table in zip(values, self._tables, strict=True))
        if known != values:
            return self[known]
        created = self[known] = self._create(known)
        return created

    def prepare(self, table: Iterable[Value]) -> None:
        """Create the time series of a metric with one label: the first increase of a missing one shows in no rate."""
        for value in table:
            self[(value,)] = self._create((value,))


class Meter:
    """Creates the metrics of one process."""

    def __init__(self, *, enabled: bool) -> None:
        """Create the meter. Unless it is `enabled`, its metrics count nothing."""
        self.registry: CollectorRegistry | None = None
        """The metrics of this process alone."""
        self._factory: Callable[[Metric], Callable[[tuple[Value, ...]], Any]] = self._count_nothing
        if enabled:
            # It reads PROMETHEUS_MULTIPROC_DIR when it is imported.
            import prometheus_client  # noqa: PLC0415

            self.registry = prometheus_client.CollectorRegistry()
            self._factory = self._export

    def counters(self, metric: Metric, **tables: Iterable[Value]) -> Series[Counter]:
        """Return the time series of a counter. `tables` has those that the definition leaves empty."""
        return self._series(metric, tables)

    def histograms(self, metric: Metric, **tables: Iterable[Value]) -> Series[Histogram]:
        """Return the time series of a histogram. `tables` has those that the definition leaves empty."""
        return self._series(metric, tables)

    def counter(self, metric: Metric) -> Counter:
        """Return a counter without labels."""
        return self.counters(metric)[()]

    def gauges(self, metric: Metric) -> Series[Gauge]:
        """Return the time series of a gauge."""
        return self._series(metric, {})

    def gauge(self, metric: Metric) -> Gauge:
        """Return a gauge without labels."""
        return self.gauges(metric)[()]

    def _series(self, metric: Metric, tables: Mapping[str, Iterable[Value]]) -> Series[Any]:
        complete = {label: [*tables.get(label, table)] for label, table in metric.labels.items()}
        series: Series[Any] = Series(self._factory(metric), [*complete.values()])
        if len(complete) == 1:
            series.prepare(*complete.values())
        return series

    def _count_nothing(self, _: Metric) -> Callable[[tuple[Value, ...]], Any]:
        return lambda _: UNCOUNTED

    def _export(self, metric: Metric) -> Callable[[tuple[Value, ...]], Any]:
        import prometheus_client as library  # noqa: PLC0415

        given: dict[str, Any] = {"labelnames": [*metric.labels], "registry": self.registry}
        created: Any
        if metric.kind == "counter":
            created = library.Counter(metric.name, metric.meaning, **given)
        elif metric.kind == "gauge":
            created = library.Gauge(metric.name, metric.meaning, multiprocess_mode=metric.merged, **given)
        else:
            created = library.Histogram(metric.name, metric.meaning, buckets=metric.buckets, **given)
        return lambda values: created.labels(*values) if values else created


AUDIT_WRITTEN: Final = Metric(
    "gauge",
    "gatehouse_audit_written_timestamp_seconds",
    "Last successful write of the audit writer, heartbeats included: the oldest of all workers.",
    merged="livemin",
)
AUDIT_FAILURES: Final = Metric(
    "counter", "gatehouse_audit_write_failures_total", "Writes of the audit writer, heartbeats included, that failed."
)
AUDIT_CHECKPOINT: Final = Metric(
    "gauge",
    "gatehouse_audit_checkpoint_timestamp_seconds",
    "Until when checkpoints list the events of the audit log, as the upkeep last found it: the oldest of all workers.",
    merged="livemin",
)
AUDIT_QUEUE: Final = Metric("gauge", "gatehouse_audit_queue", "Audit events that wait to be written.")
POOL_IN_USE: Final = Metric("gauge", "gatehouse_db_pool_in_use", "Database connections in use.")
POOL_SIZE: Final = Metric("gauge", "gatehouse_db_pool_size", "Database connections that may be in use.")
LIMIT_FALLBACKS: Final = Metric(
    "counter",
    "gatehouse_limit_fallbacks_total",
    "Requests that a worker counted for itself, because the server of LIMITS_URL did not answer in time.",
)

SERVER_METRICS: Final = (
    AUDIT_WRITTEN,
    AUDIT_FAILURES,
    AUDIT_CHECKPOINT,
    AUDIT_QUEUE,
    POOL_IN_USE,
    POOL_SIZE,
    LIMIT_FALLBACKS,
)
"""What both servers measure."""


def rate_limited(*limits: str) -> Metric:
    """Return the metric of the requests that the limits of a server refuse."""
    name = "gatehouse_rate_limited_total"
    return Metric("counter", name, "Requests past a limit, which are refused with 429.", {"limit": limits})


Pool = tuple[int, int]
"""The connections of a pool in use, and how many there may be."""


class ServerMetrics:
    """What both servers measure."""

    def __init__(self, meter: Meter, clients: str) -> None:
        """Create the metrics. `clients` has the client_ids that labels may name, separated by spaces."""
        self.registry = meter.registry
        self.clients: Mapping[str | None, str] = {client_id: client_id for client_id in clients.split()}
        """The labels of clients. Others have none."""
        self._written = meter.gauge(AUDIT_WRITTEN)
        self._failures = meter.counter(AUDIT_FAILURES)
        self.audit_checkpoint = meter.gauge(AUDIT_CHECKPOINT)
        self._queue = meter.gauge(AUDIT_QUEUE)
        self._in_use = meter.gauge(POOL_IN_USE)
        self._size = meter.gauge(POOL_SIZE)
        self.limit_fallbacks = meter.counter(LIMIT_FALLBACKS)

    def report_writes(self, clock: Clock, *pools: Callable[[], Pool]) -> Callable[[bool, int], None]:
        """Return what the audit writer calls after each attempt to write, at least every five seconds."""

        def report(succeeded: bool, waiting: int) -> None:
            if succeeded:
                self._written.set(clock())
            else:
                self._failures.inc()
            self._queue.set(waiting)
            connections = [pool() for pool in pools]
            self._in_use.set(sum(in_use for in_use, _ in connections))
            self._size.set(sum(size for _, size in connections))

        return report


def stamp(gauge: Gauge, clock: Clock) -> Callable[[], None]:
    """Return a function that sets a gauge to the current time, in seconds since the epoch."""
    return lambda: gauge.set(clock())
