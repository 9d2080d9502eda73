"""Reads an event stream (WHATWG HTML, "Server-sent events") as far as MCP uses it: the data of its messages."""

from collections.abc import Iterator


class EventReader:
    """Splits the bytes of a stream into events. It holds at most what was fed: the caller bounds the bytes.

    Comments, `id` and `retry` are ignored: the gateway does not resume a stream. So are events of other types than
    `message`, which MCP does not define.
    """

    def __init__(self) -> None:
        self._line = bytearray()
        self._ended_with_cr = False
        self._data: list[bytes] = []
        self._type = b""

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """Yield the data of each message that the chunk completes. The caller exhausts the iterator."""
        if self._ended_with_cr and chunk.startswith(b"\n"):
            # The two characters of one line end, in two chunks.
            chunk = chunk[1:]
        self._ended_with_cr = chunk.endswith(b"\r")
        for part in chunk.splitlines(keepends=True):
            self._line += part
            if not part.endswith((b"\n", b"\r")):
                return
            line = bytes(self._line).rstrip(b"\r\n")
            self._line.clear()
            if line:
                self._read_field(line)
            elif (data := self._end_event()) is not None:
                yield data

    def _read_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._type = value

    def _end_event(self) -> bytes | None:
        data, kind = b"\n".join(self._data), self._type
        self._data, self._type = [], b""
        return data if data and kind in {b"", b"message"} else None
