"""A client's connections to one server."""

import asyncio
import json
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

REQUESTS_PER_CONNECTION = 50
"""A connection is then closed, so that every worker gets its share of all requests."""

MAX_CONNECTIONS = 64
"""Open connections at a time. While a server stalls, more requests wait for a connection."""

PATIENCE = 30.0
"""Seconds to wait for a response."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response, and how long it took."""

    status: int
    body: bytes
    milliseconds: float

    def json(self) -> Any:
        """Return the parsed body."""
        return json.loads(self.body)


@dataclass(slots=True)
class Connection:
    """An open connection."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    requests: int = 0

    async def exchange(self, request: bytes) -> tuple[int, bytes, bool]:
        """Return status and body of the response, and whether the server keeps the connection open."""
        self.requests += 1
        self.writer.write(request)
        header = (await self.reader.readuntil(b"\r\n\r\n")).lower()
        fields = dict(line.split(b": ", 1) for line in header.split(b"\r\n")[1:] if line)
        body = await self.reader.readexactly(int(fields.get(b"content-length", 0)))
        return int(header[9:12]), body, fields.get(b"connection") != b"close"


@dataclass
class Connections:
    """Connections to one server. A request uses the one that was idle for the longest time, or a new one."""

    url: str
    _idle: deque[Connection] = field(default_factory=deque)
    _free: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(MAX_CONNECTIONS))

    async def exchange(self, request: bytes) -> Answer:
        """Send a request. The time is that from the first byte to the complete response, without connecting.

        Raises:
            OSError, EOFError, TimeoutError: there is no complete response.
        """
        async with self._free:
            connection = self._idle.popleft() if self._idle else await self._connect()
            kept = False
            started = time.perf_counter()
            try:
                async with asyncio.timeout(PATIENCE):
                    status, body, kept = await connection.exchange(request)
            finally:
                if kept and connection.requests < REQUESTS_PER_CONNECTION:
                    self._idle.append(connection)
                else:
                    connection.writer.close()
            return Answer(status, body, (time.perf_counter() - started) * 1000)

    async def _connect(self) -> Connection:
        parts = urlsplit(self.url)
        return Connection(*await asyncio.open_connection(parts.hostname, parts.port))

    def close(self) -> None:
        """Close every idle connection."""
        for connection in self._idle:
            connection.writer.close()
        self._idle.clear()
