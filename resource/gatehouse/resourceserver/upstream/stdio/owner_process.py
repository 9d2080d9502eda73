"""The owner process of a node's programs (owner_server.py), as the master process of the server starts it."""

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple

from gatehouse.resourceserver.catalogue.policy_file import StdioTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.stdio.owner_messages import write_settings
from gatehouse.shared.service.settings import LogFormat, LogLevel

_RESTART_INTERVAL: Final = 5.0
"""Seconds between two starts of the process."""

_STOP_TIMEOUT: Final = 10.0
"""Seconds that the process may need to end: a program has three times GRACE."""

_SEND_TIMEOUT: Final = 1.0
"""Seconds that the process may need to read its settings, while the server waits."""

_PROGRAM: Final = "from gatehouse.resourceserver.upstream.stdio.owner_server import main; main()"

_INHERITED: Final = ("LD_LIBRARY_PATH", "PATH")
"""Variables that the process gets. Those of the programs come with the settings, because others may hold secrets."""

log = logging.getLogger(__name__)


class _Running(NamedTuple):
    """An owner process that was started."""

    process: "subprocess.Popen[bytes]"
    settings: socket.socket
    """Brings it its settings, as its standard input."""


class ProgramOwner:
    """Starts and supervises the owner process while the upstream is a program.

    It belongs to the process that starts the workers, which learn the path of the socket from it.
    """

    def __init__(
        self,
        current: Callable[[], UpstreamSettings],
        log_format: LogFormat,
        log_level: LogLevel,
        parent_folder: str | None = None,
    ) -> None:
        """Create a private folder for the socket. `supervise` starts the process.

        Args:
            current: returns the settings of the accepted policy.
            log_format: of the process's log, which it writes to standard error.
            log_level: of the same.
            parent_folder: where to create the folder. None for the system's folder for temporary files.

        Raises:
            OSError: the folder cannot be created.
        """
        self._current = current
        self._log_options = (log_format, log_level)
        self._folder = Path(tempfile.mkdtemp(prefix="gatehouse-upstream-", dir=parent_folder))
        self.socket = self._folder / "socket"
        """Its path."""
        self._owner: _Running | None = None
        self._settings: UpstreamSettings | None = None
        self._started = float("-inf")

    def supervise(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Make the process run for the accepted policy. One that ends is started again after five seconds."""
        current = self._current()
        settings = current if isinstance(current.transport, StdioTransport) else None
        if self._owner is not None and self._owner.process.poll() is None:
            if settings != self._settings:
                self._send(self._owner, settings)
        elif settings is not None:
            self._start_if_due(settings, monotonic())

    def stop(self) -> None:
        """End the process and its programs, and remove the folder."""
        if self._owner is not None:
            process, connection = self._owner
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                # Its programs are killed with it (launcher.py).
                process.kill()
                process.wait()
            connection.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _start_if_due(self, settings: UpstreamSettings, now: float) -> None:
        if now - self._started < _RESTART_INTERVAL:
            return
        if self._owner is not None:
            self._owner.settings.close()
            log.error("the process that runs the upstream's programs has ended; it is started again")
        self._started = now
        try:
            self._owner = self._start()
        except OSError as error:
            # Calls fail, and the servers go on.
            log.error("the process that runs the upstream's programs cannot be started: %s", error.strerror)
        else:
            self._send(self._owner, settings)

    def _start(self) -> _Running:
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        command = [sys.executable, "-I", "-c", _PROGRAM, str(self.socket), str(os.getpid()), *self._log_options]
        ours, theirs = socket.socketpair()
        ours.settimeout(_SEND_TIMEOUT)
        with theirs:
            try:
                # In a session of its own, because Ctrl-C must not end it before the workers.
                process = subprocess.Popen(  # noqa: S603
                    command, env=environment, stdin=theirs.fileno(), start_new_session=True
                )
            except OSError:
                ours.close()
                raise
        return _Running(process, ours)

    def _send(self, owner: _Running, settings: UpstreamSettings | None) -> None:
        """Tell the process its settings; None if the upstream is no program any more, and those that run may end.

        They go through its standard input, because other users can see the arguments of a process.
        """
        self._settings = settings
        members = None if settings is None else write_settings(settings, os.environ)
        try:
            owner.settings.sendall(json.dumps(members).encode() + b"\n")
        except OSError:
            # It has ended, or does not read. It gets them when it is started again.
            owner.process.kill()
