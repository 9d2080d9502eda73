"""A server that speaks as much of the Redis protocol (RESP 2) as shared counts need, on the event loop of a test."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from local_stack import free_port

_ACQUIRE = 8
"""Words of the command that counts a request: EVALSHA, the script, the number of keys, a key and four arguments."""


class FakeRedis:
    """Allows or refuses what is counted, as the test says."""

    def __init__(self) -> None:
        self.port = free_port()
        self.allows = True
        self.oldest = 0.0
        """The time of the oldest request in the window."""
        self.silent = False
        """Answers nothing."""
        self.released = asyncio.Event()
        """Answers once this is set."""
        self.released.set()
        self.keys: list[str] = []
        """The keys of the requests that it was asked to count."""

    @property
    def url(self) -> str:
        return f"redis://user:password@127.0.0.1:{self.port}/0"

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[None]:
        """Serve until the block ends, and then close every connection."""
        connections: set[asyncio.StreamWriter] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.add(writer)
            try:
                while words := await _command(reader):
                    await self.released.wait()
                    if not self.silent:
                        writer.write(self._answer(words))
            except (asyncio.IncompleteReadError, ConnectionError):
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", self.port)
        try:
            yield
        finally:
            server.close()
            for writer in connections:
                writer.close()
            await server.wait_closed()

    def _answer(self, words: list[str]) -> bytes:
        if words[0] != "EVALSHA":
            return b"+OK\r\n"
        if len(words) == _ACQUIRE:
            self.keys.append(words[3])
            return b":1\r\n" if self.allows else b"$-1\r\n"
        oldest = str(self.oldest)
        number = 0 if self.allows else 1
        return f"*2\r\n${len(oldest)}\r\n{oldest}\r\n:{number}\r\n".encode()


async def _command(reader: asyncio.StreamReader) -> list[str]:
    """Read an array of bulk strings; an empty one at the end of the connection."""
    if not (line := await reader.readline()):
        return []
    words = []
    for _ in range(int(line[1:])):
        length = int((await reader.readline())[1:])
        words.append((await reader.readexactly(length + 2))[:-2].decode())
    return words
