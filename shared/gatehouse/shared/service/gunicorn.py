"""The `serve` command of both servers: gunicorn, configured by the server's settings alone.

gunicorn reads no configuration file and no environment variable of its own.
"""

import gc
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter
from gunicorn.glogging import Logger

from gatehouse.shared.service.addresses import bind_probe
from gatehouse.shared.service.connections import IDLE_TIMEOUT
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.metrics_process import MetricsProcess
from gatehouse.shared.service.server_tls import server_context
from gatehouse.shared.service.settings import InvalidSettings, ServerSettings
from gatehouse.shared.service.worker import DRAIN_TIMEOUT, Worker

_WORKER_TIMEOUT = 30
"""Seconds without a heartbeat after which a worker is replaced."""

_GRACEFUL_TIMEOUT = DRAIN_TIMEOUT + 3
"""Seconds after which a stopping worker is killed. After the requests in flight it still writes its audit log."""


def heartbeat_folder(in_memory: str = "/dev/shm") -> str | None:  # noqa: S108 - gunicorn creates its file safely
    """Return the folder of the unnamed files whose times are the workers' heartbeats; None for the temporary folder.

    Containers with a read-only root file system have no temporary folder, but this one in memory.
    """
    return in_memory if os.access(in_memory, os.W_OK) else None


log = logging.getLogger(__name__)


class _PropagatingLogger(Logger):
    """Passes gunicorn's messages to the handlers that the server configured."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.setLevel(logging.INFO)
        self.error_log.propagate = True
        self.access_log = logging.getLogger("gunicorn.access")
        self.access_log.setLevel(logging.CRITICAL)
        # Otherwise gunicorn computes it for each request.
        self._access_log_enabled = False


class Companion(Protocol):
    """What the master process does for the workers, besides keeping them running."""

    def supervise(self) -> None:
        """Do it. Called at the start, once a second, and after a process has ended; it must not block."""
        ...

    def stop(self) -> None:
        """End it, after the workers."""
        ...


@dataclass(frozen=True, slots=True)
class Server:
    """A server to run: an application that every worker creates after the fork."""

    name: str
    settings: ServerSettings
    prepare: Callable[[], Callable[[], Any]]
    """Called once, before the fork. Checks what would stop every worker, and returns what creates the application."""
    companions: list[Companion] = field(default_factory=list)
    """`prepare` may add to them."""

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; does not return.

        Raises:
            InvalidSettings: the certificate cannot be used.
            OSError: an address cannot be bound; its `filename` is the setting and the address.
        """
        configure_logs(self.settings.log_format, self.settings.log_level)
        # First, because what `prepare` imports may import prometheus_client.
        metrics = self._prepare_metrics()
        if metrics is not None:
            self.companions.append(metrics)
        create_app = self.prepare()
        self.tls_context()
        bind_probe(self.settings.bind, f"{self.name.upper()}_BIND={self.settings.bind}")
        _Application(self, create_app, metrics).run()

    def tls_context(self) -> ssl.SSLContext | None:
        """Return the context of the server's own TLS; None behind a proxy. Raises InvalidSettings."""
        settings = self.settings
        if settings.tls_certificate is None or settings.tls_key is None:
            return None
        return server_context(settings.tls_certificate, settings.tls_key, f"{self.name.upper()}_")

    def _prepare_metrics(self) -> MetricsProcess | None:
        bind = self.settings.metrics_bind
        if bind is None:
            return None
        bind_probe(bind, f"{self.name.upper()}_METRICS_BIND={bind}")
        return MetricsProcess(self.name, bind, heartbeat_folder())


class SupervisingArbiter(Arbiter):
    """Also supervises the server's companions. Overrides a method; gunicorn is pinned exactly."""

    def manage_workers(self) -> None:
        """Start what is missing. Called at the start, once a second, and after a process has ended."""
        # First, because workers may use what they start.
        for companion in self.app.companions:
            companion.supervise()
        super().manage_workers()


class _Application(BaseApplication):
    tls: ssl.SSLContext | None = None
    """Of the workers that start next."""

    def __init__(self, server: Server, create_app: Callable[[], Any], metrics: MetricsProcess | None) -> None:
        self._server = server
        self._create_app = create_app
        self._metrics = metrics
        self.companions = server.companions
        super().__init__()

    def load_config(self) -> None:
        server = self._server
        try:
            self.tls = server.tls_context()
        except InvalidSettings as error:
            # After SIGHUP. The next workers serve with the certificate of the previous ones.
            log.error("the new certificate cannot be used: %s", error)
        options: dict[str, Any] = {
            "proc_name": server.name,
            "bind": server.settings.bind,
            "workers": server.settings.workers,
            "worker_class": Worker,
            "asgi_loop": "uvloop",
            # gunicorn_h1c, in C.
            "http_parser": "fast",
            "timeout": _WORKER_TIMEOUT,
            "graceful_timeout": int(_GRACEFUL_TIMEOUT),
            "keepalive": int(IDLE_TIMEOUT),
            # Room for a token of 8 KiB, and little more.
            "limit_request_line": 4094,
            "limit_request_fields": 64,
            "limit_request_field_size": 16384,
            "logger_class": _PropagatingLogger,
            "control_socket_disable": True,
            "worker_tmp_dir": heartbeat_folder(),
            # gunicorn believes no proxy: the issuer comes from the settings, and the servers themselves read the
            # address that a trusted proxy claims (source_address.py).
            "forwarded_allow_ips": "",
            "on_exit": self._stop_companions,
        }
        if (metrics := self._metrics) is not None:
            options["child_exit"] = lambda _, worker: metrics.forget(worker.pid)
        for name, value in options.items():
            self.cfg.set(name, value)

    def _stop_companions(self, _: Arbiter) -> None:
        for companion in self.companions:
            companion.stop()

    def load(self) -> Any:
        app = self._create_app()
        # A full garbage collection stops all threads, for hundreds of milliseconds if it visits every object that was
        # imported or created until now. These objects live as long as the worker. Without them, it takes milliseconds.
        gc.freeze()
        return app

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        SupervisingArbiter(self).run()
