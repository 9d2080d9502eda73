"""The gunicorn worker of both servers: it accepts connections up to a limit, and stops without breaking any in use."""

import asyncio
import contextlib
import os
import resource
import socket
import time
from functools import partial
from typing import Any, Final

from gunicorn.arbiter import Arbiter
from gunicorn.asgi.lifespan import LifespanManager
from gunicorn.workers.gasgi import ASGIWorker

from gatehouse.shared.service.connection import Connection
from gatehouse.shared.service.connections import (
    CLOSE_TIMEOUT,
    HEADER_TIMEOUT,
    SPARE,
    WRITE_TIMEOUT,
    Connections,
    connection_limit,
)
from gatehouse.shared.service.event_loop import run_to_end
from gatehouse.shared.service.transport_refusals import TransportRefusals

DRAIN_TIMEOUT: Final = 10.0
"""Seconds that requests in flight get to finish when the server stops."""

_ACCEPT_BATCH: Final = 64
_PAUSE: Final = 0.1
"""Seconds without accepting while every connection is in use, or after the system had no file. A retry would spin."""

_REPLACEMENT_PAUSE: Final = 0.02
"""Seconds without accepting after connections took the place of others: at most 400 do in a second."""

_LOG_INTERVAL: Final = 60.0
"""Seconds between two log lines about connections that are not accepted."""


class Worker(ASGIWorker):
    """Serves an ASGI application that is an EventRecorder. Overrides private methods; gunicorn is pinned exactly."""

    connections: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stopping = asyncio.Event()
        self._opening: dict[asyncio.Task[None], None] = {}
        """Connections that were accepted and are not served yet, oldest first. With TLS, they wait for their client."""
        self._tls: dict[str, Any] = {}
        if self.app.tls is not None:
            # The worker itself ends a close that takes too long.
            shutdown = WRITE_TIMEOUT + CLOSE_TIMEOUT
            self._tls = {
                "ssl": self.app.tls,
                "ssl_handshake_timeout": HEADER_TIMEOUT,
                "ssl_shutdown_timeout": shutdown,
            }
        self._accepts = False
        self._logged = float("-inf")

    def handle_exit_signal(self) -> None:
        """Stop (SIGTERM). `alive` stays true: gunicorn's protocol would close connections without announcing it."""
        self._stopping.set()

    def handle_quit_signal(self) -> None:
        """Stop without waiting for requests in flight (SIGINT, SIGQUIT)."""
        super().handle_quit_signal()
        self._stopping.set()

    def run(self) -> None:
        """Serve until the worker is stopped. A `sys.exit` in a task of the application does not stop it."""
        try:
            run_to_end(self.loop, self.loop.create_task(self._serve()), lambda: not self.alive)
        except Exception:
            self.log.exception("the worker failed")
        finally:
            self._cleanup()

    async def _serve(self) -> None:
        await self._start_application()
        files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.connections = Connections(connection_limit(files), TransportRefusals(self.asgi), time.monotonic)
        self._accept_again()
        self.log.info("Serving at most %d connections", self.connections.limit)
        while not self._stopping.is_set():
            self.notify()
            if self.ppid != os.getppid():
                self.log.info("Parent changed, shutting down: %s", self)
                break
            self.connections.expire()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), 1.0)
        await self._drain()
        if self.lifespan is not None:
            # Also after SIGINT: the application writes the events that are still in memory.
            await self.lifespan.shutdown()

    async def _start_application(self) -> None:
        self.lifespan = LifespanManager(self.asgi, self.log, self.state)
        try:
            await self.lifespan.startup()
        except Exception as error:  # noqa: BLE001 - whatever the application raises, it cannot be served
            self.log.error("ASGI lifespan startup failed: %s", error)
            self.lifespan = None
            raise SystemExit(Arbiter.WORKER_BOOT_ERROR) from None

    # Accept

    def _accept(self, listener: socket.socket) -> None:
        """Accept what has connected. At the limit, each connection takes the place of one that waits for its client."""
        connections = self.connections
        room = connections.limit - len(connections.open) - len(self._opening)
        if room > 0:
            for _ in range(min(_ACCEPT_BATCH, room)):
                if not self._accept_one(listener):
                    return
            return
        replaced = 0
        while replaced < SPARE and self._has_waiting and self._accept_one(listener):
            self._make_room()
            replaced += 1
        if not self._accepts:
            return
        if replaced:
            # An aborted connection frees its file only after this call. Clients that connect again and again would
            # occupy the process without the pause.
            self._stop_accepting()
            self.loop.call_later(_REPLACEMENT_PAUSE, self._accept_again)
        elif not connections.has_waiting and not self._opening:
            self._pause("all connections are in use")

    @property
    def _has_waiting(self) -> bool:
        """Whether a connection waits for its client, which may not have completed the TLS handshake."""
        return bool(self._tls and self._opening) or self.connections.has_waiting

    def _make_room(self) -> None:
        """Abort the handshake that has waited the longest, or otherwise a connection that waits for its client."""
        # The last of the handshakes is that of the connection that needs the room.
        if self._tls and len(self._opening) > 1:
            oldest = next(iter(self._opening))
            del self._opening[oldest]
            oldest.cancel()
        else:
            self.connections.make_room()

    def _accept_one(self, listener: socket.socket) -> bool:
        """Accept a connection. False if there is none, or no file for it."""
        try:
            accepted, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return False
        except OSError as error:
            self.connections.reduce()
            self._pause(error.strerror or "accept failed")
            return False
        accepted.setblocking(False)
        opening = self.loop.create_task(self._open(accepted))
        self._opening[opening] = None
        opening.add_done_callback(lambda done: self._opening.pop(done, None))
        return True

    async def _open(self, accepted: socket.socket) -> None:
        try:
            await self.loop.connect_accepted_socket(partial(Connection, self), accepted, **self._tls)
        except OSError:
            accepted.close()

    def _pause(self, reason: str) -> None:
        now = self.loop.time()
        if now - self._logged >= _LOG_INTERVAL:
            self._logged = now
            self.log.warning("New connections must wait: %s", reason)
        self._stop_accepting()
        self.loop.call_later(_PAUSE, self._accept_again)

    def _accept_again(self) -> None:
        if self._accepts or self._stopping.is_set():
            return
        self._accepts = True
        for listener in self.sockets:
            listener.sock.setblocking(False)
            self.loop.add_reader(listener.sock.fileno(), self._accept, listener.sock)

    def _stop_accepting(self) -> None:
        self._accepts = False
        for listener in self.sockets:
            self.loop.remove_reader(listener.sock.fileno())

    # Stop

    async def _drain(self) -> None:
        """Stop listening, and wait until every connection is closed or DRAIN_TIMEOUT has passed."""
        self._stopping.set()
        self.connections.draining = True
        self._stop_accepting()
        for listener in self.sockets:
            # What the system has accepted would be reset by the close.
            self._accept(listener.sock)
            self._stop_accepting()
            listener.close()
        deadline = self.loop.time() + DRAIN_TIMEOUT
        while (self.connections.open or self._opening) and self.loop.time() < deadline and not self._quick_shutdown:
            self.connections.close_idle()
            await asyncio.sleep(0.05)
        if self.connections.open:
            self.log.warning("%d connections are cut", len(self.connections.open))
