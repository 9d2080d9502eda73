"""HTTP clients for tests of availability: silent ones, and callers that count every failure."""

import asyncio
import contextlib
import multiprocessing
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from multiprocessing.synchronize import Event
from urllib.parse import urlsplit

RETRY = 0.02
"""Seconds before another attempt to connect."""

LIMIT = 60.0
"""Seconds for what callers or held connections must reach."""


@dataclass
class Tally:
    """What callers saw."""

    seconds: list[float] = field(default_factory=list)
    """Of each answered request, the connection included."""
    refused: int = 0
    """Attempts to connect that were refused, because no server listened."""
    announced: int = 0
    """Responses that announced the close of their connection."""
    failures: list[str] = field(default_factory=list)
    _answer: asyncio.Event = field(default_factory=asyncio.Event)

    def add_answer(self, seconds: float, status: int, *, closes: bool) -> None:
        """Count an answer."""
        self.seconds.append(seconds)
        self.announced += closes
        if status != 200:
            self.failures.append(f"status {status}")
        self._answer.set()

    async def wait_for_answers(self, number: int) -> None:
        """Wait until there are this many more answers. Raises TimeoutError."""
        enough = len(self.seconds) + number
        async with asyncio.timeout(LIMIT):
            while len(self.seconds) < enough:
                self._answer.clear()
                await self._answer.wait()

    def line(self) -> str:
        """Return a summary."""
        ordered = sorted(self.seconds) or [0.0]
        return (
            f"{len(self.seconds)} requests, p50 {ordered[len(ordered) // 2] * 1000:.0f} ms, "
            f"p99 {ordered[len(ordered) * 99 // 100] * 1000:.0f} ms, slowest {ordered[-1] * 1000:.0f} ms, "
            f"{self.announced} announced closes, {self.refused} refused connections, {len(self.failures)} failures"
        )


@dataclass
class Caller:
    """Sends the same request again and again, on one connection for as long as the server keeps it."""

    url: str
    request: bytes
    tally: Tally
    keep_alive: bool = True
    pause: float = 0.05
    stopped: bool = False

    async def run(self) -> None:
        """Send requests until `stopped`."""
        streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        while not self.stopped:
            started = time.monotonic()
            try:
                streams = streams or await _connect(self.url)
            except ConnectionRefusedError:
                self.tally.refused += 1
                await asyncio.sleep(RETRY)
                continue
            reader, writer = streams
            try:
                writer.write(self.request)
                status, closes = await asyncio.wait_for(_response(reader), 30)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
                self.tally.failures.append(f"{type(error).__name__}: {error}")
                status, closes = 0, True
            if status:
                self.tally.add_answer(time.monotonic() - started, status, closes=closes)
            if closes or not self.keep_alive:
                writer.close()
                streams = None
            await asyncio.sleep(self.pause)
        if streams is not None:
            streams[1].close()


async def _connect(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    parts = urlsplit(url)
    return await asyncio.open_connection(parts.hostname, parts.port)


async def _response(reader: asyncio.StreamReader) -> tuple[int, bool]:
    """Return the status of a response, and whether it announces the close of its connection."""
    header = (await reader.readuntil(b"\r\n\r\n")).lower()
    fields = dict(line.split(b": ", 1) for line in header.split(b"\r\n")[1:] if line)
    await reader.readexactly(int(fields[b"content-length"]))
    return int(header[9:12]), fields.get(b"connection") == b"close"


@contextlib.asynccontextmanager
async def calling(callers: list[Caller]) -> AsyncIterator[None]:
    """Run callers until the block ends."""
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    try:
        yield
    finally:
        for caller in callers:
            caller.stopped = True
        await asyncio.gather(*tasks)


@contextlib.contextmanager
def held_open(url: str, number: int, sent: bytes, retry: float = RETRY) -> Iterator[None]:
    """Keep connections open that send an incomplete request, and open each again when the server closes it.

    The block begins when each of them has been opened once. They are in a process of their own, so that they do not
    delay the callers in this one.
    """
    context = multiprocessing.get_context("spawn")
    opened = context.Event()
    process = context.Process(target=_hold_all, args=(url, number, sent, retry, opened))
    process.start()
    try:
        assert opened.wait(LIMIT), f"{number} connections could not be opened"
        yield
    finally:
        process.kill()
        process.join()


def _hold_all(url: str, number: int, sent: bytes, retry: float, opened: Event) -> None:
    waiting = set(range(number))

    async def hold(connection: int) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await _connect(url)
                waiting.discard(connection)
                if not waiting:
                    opened.set()
                try:
                    writer.write(sent)
                    await reader.read()
                finally:
                    writer.close()
            await asyncio.sleep(retry)

    async def hold_all() -> None:
        await asyncio.gather(*(hold(connection) for connection in range(number)))

    asyncio.run(hold_all())


class TcpProxy:
    """Forwards each connection to one of several nodes: the next one that accepts it."""

    def __init__(self, nodes: list[int]) -> None:
        self.nodes = nodes
        self._next = 0
        self._forwards: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[None]:
        server = await asyncio.start_server(self._forward, "127.0.0.1", port)
        try:
            yield
        finally:
            server.close()
            for task in self._forwards:
                task.cancel()
            await asyncio.gather(*self._forwards, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._forwards.add(task)
        task.add_done_callback(self._forwards.discard)
        self._next += 1
        first = self._next % len(self.nodes)
        for node in (*self.nodes[first:], *self.nodes[:first]):
            try:
                node_reader, node_writer = await asyncio.open_connection("127.0.0.1", node)
            except ConnectionRefusedError:
                continue
            await asyncio.gather(_copy(reader, node_writer), _copy(node_reader, writer))
            return
        writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
    finally:
        writer.close()
