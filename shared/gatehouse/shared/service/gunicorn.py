"""gunicorn, started from a command line of ours with settings of ours; no file or variable of its own is read."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from gatehouse.shared.service.addresses import bind_probe

_WORKER_TIMEOUT = 30
"""Seconds without a sign of life after which a worker is replaced."""

_GRACEFUL_TIMEOUT = 10
"""Seconds that requests in flight have when the server stops."""


class _PropagatingLogger(Logger):
    """Hands gunicorn's own messages to the handlers that the server configured."""

    def setup(self, cfg: Any) -> None:
        self.error_log = logging.getLogger("gunicorn.error")
        self.error_log.setLevel(logging.INFO)
        self.error_log.propagate = True
        self.access_log = logging.getLogger("gunicorn.access")
        self.access_log.setLevel(logging.CRITICAL)


@dataclass(frozen=True, slots=True)
class Server:
    """What gunicorn runs: an application made anew in every worker, after the fork."""

    name: str
    bind: str
    workers: int
    worker_class: Literal["gthread", "asgi"]
    create_app: Callable[[], Any]
    close_app: Callable[[Any], None] = lambda _: None
    threads: int = 1

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; does not return.

        Raises:
            OSError: the address cannot be bound; its `filename` is the setting and the address.
        """
        bind_probe(self.bind, f"{self.name.upper()}_BIND={self.bind}")
        _Application(self).run()


class _Application(BaseApplication):
    def __init__(self, server: Server) -> None:
        self._server = server
        super().__init__()

    def load_config(self) -> None:
        server = self._server
        options: dict[str, Any] = {
            "proc_name": server.name,
            "bind": server.bind,
            "workers": server.workers,
            "worker_class": server.worker_class,
            "threads": server.threads,
            "timeout": _WORKER_TIMEOUT,
            "graceful_timeout": _GRACEFUL_TIMEOUT,
            "keepalive": 75,
            # A token of 8 KiB fits; little else does.
            "limit_request_line": 4094,
            "limit_request_fields": 64,
            "limit_request_field_size": 16384,
            "logger_class": _PropagatingLogger,
            "control_socket_disable": True,
            # The scheme and address a proxy claims decide nothing here: the issuer comes from the settings.
            "forwarded_allow_ips": "",
            "worker_exit": lambda _arbiter, worker: self._close(worker),
        }
        if server.worker_class == "asgi":
            options["asgi_lifespan"] = "on"
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        return self._server.create_app()

    def _close(self, _: Any) -> None:
        if self.callable is not None:
            self._server.close_app(self.callable)
