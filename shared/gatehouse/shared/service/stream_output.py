"""Commands that print until they are stopped: they end orderly at a signal, and quietly when nobody reads any more."""

import json
import select
import signal
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO


class Stop:
    """Whether SIGINT or SIGTERM asked the command to end."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def at_signals(self) -> Iterator[None]:
        """Note the first of the two signals in the block. A second one has its usual effect, and ends the process."""
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

        def put_back() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def note(_: int, __: FrameType | None) -> None:
            self.requested = True
            put_back()

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            put_back()


class LineOutput:
    """Standard output, or another stream, as JSON lines for a reader that may close it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._reader = select.poll()
        # Errors are reported whatever is asked for, and nothing else is asked for.
        self._reader.register(stream.fileno(), 0)

    def write(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write one line for each record, and flush them. Raises BrokenPipeError."""
        self._stream.write("".join(f"{json.dumps(record)}\n" for record in records))
        self._stream.flush()

    def wait(self, seconds: float) -> None:
        """Wait for some time. Raises BrokenPipeError at once when the reader closes a pipe."""
        if self._reader.poll(seconds * 1000):
            raise BrokenPipeError
