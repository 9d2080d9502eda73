"""Starts and supervises the process that serves the metrics, and keeps the folder in which the workers count.

Files of workers that have ended stay, so that no count is lost; only their gauges go.
"""

import fcntl
import logging
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from gatehouse.shared.service.addresses import split_bind
from gatehouse.shared.service.metrics_server import FOLDER, PATH

_RESTART_INTERVAL: Final = 5.0
"""Seconds between two starts of the process."""

_STOP_TIMEOUT: Final = 5.0
"""Seconds that the process may need to end."""

_PROGRAM: Final = "from gatehouse.shared.service.metrics_server import main; main()"

_INHERITED: Final = ("LD_LIBRARY_PATH", "PATH", FOLDER)
"""Variables that the process gets. Others may hold secrets."""

log = logging.getLogger(__name__)


class MetricsProcess:
    """The process that serves /metrics, and the folder of its files."""

    def __init__(self, name: str, bind: str, parent_folder: str | None) -> None:
        """Create the folder of the files, and set the variable that names it. Call this before the first import.

        Args:
            name: the server.
            bind: HOST:PORT to listen on. No other server on this machine uses the same.
            parent_folder: where to create the folder. None for the system's folder for temporary files.

        Raises:
            OSError: the folder cannot be created.
        """
        self._bind = bind
        parent = Path(parent_folder or tempfile.gettempdir())
        prefix = f"gatehouse-{name}-metrics-{split_bind(bind)[1]}-"
        for folder in parent.glob(f"{prefix}*"):
            _remove_if_left(folder)
        # Its name is random, because other users could create a folder with a predictable name and prevent the start.
        self._folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # The workers inherit the lock, so it ends with the last process that counts in the folder.
        self._descriptor = _lock(self._folder)
        os.environ[FOLDER] = str(self._folder)
        self._process: subprocess.Popen[bytes] | None = None
        self._started = float("-inf")

    def supervise(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        """Start the process, unless it runs. One that ends is started again after five seconds."""
        if self._process is not None and self._process.poll() is None:
            return
        now = monotonic()
        if now - self._started < _RESTART_INTERVAL:
            return
        if self._process is not None:
            log.error("the process that serves %s has ended; it is started again", PATH)
        self._started = now
        try:
            self._process = self._start()
        except OSError as error:
            # The servers go on without it.
            log.error("the process that serves %s cannot be started: %s", PATH, error.strerror)

    def _start(self) -> "subprocess.Popen[bytes]":
        environment = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        command = [sys.executable, "-I", "-c", _PROGRAM, self._bind, str(os.getpid())]
        # In a session of its own, because Ctrl-C must not end it before the workers.
        return subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, start_new_session=True)  # noqa: S603

    def forget(self, pid: int) -> None:
        """Remove the gauges of a worker that has ended. What it counted stays in the sums."""
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415

        mark_process_dead(pid, str(self._folder))  # type: ignore[no-untyped-call]

    def stop(self) -> None:
        """End the process, and remove the folder."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self._process.kill()
        shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._descriptor)


def _remove_if_left(folder: Path) -> None:
    """Remove a folder of this user if no server counts in it, because the one that created it was killed."""
    try:
        descriptor = _lock(folder)
    except OSError:
        # In use, or not a folder that this user can read.
        return
    if os.fstat(descriptor).st_uid == os.geteuid():
        shutil.rmtree(folder, ignore_errors=True)
    os.close(descriptor)


def _lock(folder: Path) -> int:
    """Lock a folder, and return its descriptor. Raises OSError: it is locked, or not a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor
