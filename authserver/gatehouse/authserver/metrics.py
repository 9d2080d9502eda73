"""What the authorization server measures."""

from typing import Final

from gatehouse.authserver.clients.registry import REGISTERED_METHODS
from gatehouse.authserver.errors import ERRORS, AuthFailure
from gatehouse.authserver.grants import client_credentials, jwt_bearer
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.metrics import SERVER_METRICS, Meter, Metric, ServerMetrics, rate_limited

OUTCOMES: Final = ("allowed", "refused", "failed", "aborted")
"""`aborted`: the client disconnected before the response."""

TOKEN_REQUESTS: Final = Metric(
    "counter",
    "gatehouse_token_requests_total",
    "Requests to /token.",
    {
        "grant_type": (client_credentials.GRANT_TYPE, jwt_bearer.GRANT_TYPE),
        "auth_method": REGISTERED_METHODS,
        "outcome": OUTCOMES,
        "error": ERRORS,
        # Of AUTHSERVER_METRICS_CLIENTS.
        "client_id": (),
    },
)
TOKEN_DURATION: Final = Metric(
    "histogram",
    "gatehouse_token_request_duration_seconds",
    "Time from a request to /token until its response was sent.",
    {"outcome": OUTCOMES},
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1),
)
AUTH_FAILURES: Final = Metric(
    "counter",
    "gatehouse_client_auth_failures_total",
    "Failed authentications of clients, and of resources at /introspect.",
    {"reason": tuple(map(str, AuthFailure))},
)
REPLAYS: Final = Metric(
    "counter", "gatehouse_replay_rejections_total", "Valid assertions that were refused because they were used before."
)
KEY_ROTATION: Final = Metric(
    "gauge",
    "gatehouse_signing_key_rotation_timestamp_seconds",
    "When the next signing key is published, or begins to sign if it is published. 0 unless a worker rotates keys.",
    merged="max",
)
ISSUER_KEYS: Final = Metric(
    "gauge",
    "gatehouse_issuer_keys_timestamp_seconds",
    "When the keys of trusted issuers were last fetched: the oldest of all enabled issuers. 0 if none are fetched.",
    merged="livemin",
)

RATE_LIMITED: Final = rate_limited("token_requests", "authentication_failures", "revocations", "introspections")

METRICS: Final = (
    TOKEN_REQUESTS,
    TOKEN_DURATION,
    AUTH_FAILURES,
    REPLAYS,
    RATE_LIMITED,
    KEY_ROTATION,
    ISSUER_KEYS,
    *SERVER_METRICS,
)


class Metrics(ServerMetrics):
    """The time series of one process."""

    def __init__(self, settings: Settings) -> None:
        meter = Meter(enabled=settings.metrics_bind is not None)
        super().__init__(meter, settings.metrics_clients)
        self.token_requests = meter.counters(TOKEN_REQUESTS, client_id=self.clients.values())
        self.token_durations = meter.histograms(TOKEN_DURATION)
        self.auth_failures = meter.counters(AUTH_FAILURES)
        self.replays = meter.counter(REPLAYS)
        self.rate_limited = meter.counters(RATE_LIMITED)
        self.key_rotation = meter.gauge(KEY_ROTATION)
        self.issuer_keys = meter.gauge(ISSUER_KEYS)
