"""Sends prepared requests where `wrk` is missing. Arguments: URL, connections, seconds, then those of wrk.lua.

It prints the line that wrk.lua prints. It needs several times the CPU of wrk, so the server is idle more often; its CPU
time per request does not change by that.
"""

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from bench.measuring import percentile


class Tally:
    """The requests still to send, and the responses."""

    def __init__(self, file: Path, once: bool, status: int, contained: bytes) -> None:
        self.requests = list(_read(file))
        self.once = once
        self.status = status
        self.contained = contained
        self.sent = 0
        self.right = self.wrong = self.exhausted = self.broken = 0
        self.first_wrong = ""
        self.latencies: list[float] = []

    def next(self) -> bytes:
        """Return the next request."""
        number, self.sent = self.sent, self.sent + 1
        if self.once and number >= len(self.requests):
            self.exhausted += 1
        return self.requests[number % len(self.requests)]

    def count(self, status: int, body: bytes, seconds: float) -> None:
        """Count a response."""
        self.latencies.append(seconds)
        if status == self.status and self.contained in body:
            self.right += 1
            return
        self.wrong += 1
        self.first_wrong = self.first_wrong or " ".join(f"{status} {body[:300].decode(errors='replace')}".split())


def _read(file: Path) -> Iterator[bytes]:
    with file.open("rb") as lines:
        while length := lines.readline():
            yield lines.read(int(length))


async def _read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    status = int(head[9:12])
    if b"\r\ntransfer-encoding: chunked" in head:
        body = b""
        while size := int(await reader.readline(), 16):
            body += await reader.readexactly(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
        return status, body
    _, found, rest = head.partition(b"\r\ncontent-length:")
    return status, await reader.readexactly(int(rest.split(b"\r\n", 1)[0]) if found else 0)


async def _connection(host: str, port: int, until: float, tally: Tally) -> None:
    reader, writer = await asyncio.open_connection(host, port)
    try:
        while (started := time.perf_counter()) < until:
            writer.write(tally.next())
            status, body = await _read_response(reader)
            tally.count(status, body, time.perf_counter() - started)
    except (OSError, EOFError):
        tally.broken += 1
    finally:
        writer.close()


async def _run(url: str, connections: int, seconds: float, tally: Tally) -> float:
    parts = urlsplit(url)
    started = time.perf_counter()
    clients = (_connection(str(parts.hostname), parts.port or 80, started + seconds, tally) for _ in range(connections))
    await asyncio.gather(*clients)
    return time.perf_counter() - started


def main() -> None:
    """Send requests, and print what was counted."""
    url, connections, seconds, file, once, status, contained = sys.argv[1:]
    tally = Tally(Path(file), once == "once", int(status), contained.encode())
    duration = asyncio.run(_run(url, int(connections), float(seconds), tally))
    microseconds = [round(percentile(tally.latencies or [0.0], share) * 1e6) for share in (0.5, 0.99)]
    counts = [tally.right, tally.wrong, tally.exhausted, tally.broken, round(duration * 1e6), *microseconds]
    print("BENCH", *counts, tally.first_wrong)


if __name__ == "__main__":
    main()
