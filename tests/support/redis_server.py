"""A real Redis or Valkey server of the distribution."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from local_stack import free_port
from redis import Redis, RedisError

from support.waiting import wait_until

SERVER = shutil.which("redis-server") or shutil.which("valkey-server")


class RedisServer:
    """One process. It keeps nothing on disk."""

    def __init__(self, folder: Path, users: Sequence[str] = (), credentials: str = "") -> None:
        """`users` are lines of a configuration, and `credentials` those of the user that connects, `NAME:PASSWORD@`."""
        self.port = free_port()
        self.url = f"redis://{credentials}127.0.0.1:{self.port}/0"
        self._users = [word for user in users for word in f"--{user}".split()]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        assert SERVER is not None, "install redis-server or valkey-server"
        options = ("--bind", "127.0.0.1", "--port", str(self.port), "--save", "", "--appendonly", "no", *self._users)
        with (self._folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen([SERVER, *options], cwd=self._folder, stdout=log, stderr=log)
        wait_until(self._answers)

    def stop(self) -> None:
        """End it; everything that it has counted is lost."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Let it refuse connections until the block ends."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """Let it accept connections and answer nothing until the block ends."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process.pid, signal.SIGCONT)

    def _answers(self) -> bool:
        try:
            with Redis.from_url(self.url) as client:
                return bool(client.ping())
        except RedisError:
            return False
