"""The `serve` command of both servers: gunicorn, configured by the server's settings alone.

gunicorn reads no configuration file and no environment variable of its own.
"""

import gc
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.glogging import Logger

from gatehouse.shared.service.addresses import bind_probe
from gatehouse.shared.service.connection_limits import IDLE_TIMEOUT
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.settings import ServerSettings
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


@dataclass(frozen=True, slots=True)
class Server:
    """A server to run: an application that every worker creates after the fork."""

    name: str
    settings: ServerSettings
    prepare: Callable[[], Callable[[], Any]]
    """Called once, before the fork. Checks what would stop every worker, and returns what creates the application."""

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT; does not return.

        Raises:
            OSError: the address cannot be bound; its `filename` is the setting and the address.
        """
        configure_logs(self.settings.log_format, self.settings.log_level)
        create_app = self.prepare()
        bind_probe(self.settings.bind, f"{self.name.upper()}_BIND={self.settings.bind}")
        _Application(self, create_app).run()


class _Application(BaseApplication):
    def __init__(self, server: Server, create_app: Callable[[], Any]) -> None:
        self._server = server
        self._create_app = create_app
        super().__init__()

    def load_config(self) -> None:
        server = self._server
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
            # No decision depends on the scheme and address that a proxy claims: the issuer comes from the settings.
            "forwarded_allow_ips": "",
        }
        for name, value in options.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        app = self._create_app()
        # A full garbage collection stops all threads, for hundreds of milliseconds if it visits every object that was
        # imported or created until now. These objects live as long as the worker. Without them, it takes milliseconds.
        gc.freeze()
        return app
