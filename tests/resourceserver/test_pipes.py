"""How the lines of a program are read, and those for it are kept."""

import os
from contextlib import suppress
from typing import Any

import anyio
import pytest

from gatehouse.resourceserver.upstream.stdio.pipes import LineReader, LineWriter

pytestmark = pytest.mark.anyio


def lines_of(*chunks: bytes, max_length: int = 10, kept: int = 4) -> list[Any]:
    source, sink = os.pipe()
    delivered: list[Any] = []
    reader = LineReader(source, max_length, delivered.append, lambda *ends: delivered.append(ends), kept)
    for chunk in chunks:
        os.write(sink, chunk)
        reader.read()
    os.close(sink)
    reader.drain(100)
    assert reader.read() == 0
    os.close(source)
    return delivered


def test_lines_are_split_wherever_the_pipe_splits_them() -> None:
    assert lines_of(b"a\nb", b"c\n\nd", b"\n", b"rest") == [b"a", b"bc", b"", b"d"]
    assert lines_of(b"0123456789\n") == [b"0123456789"]
    assert lines_of(b"0123456789", b"a\nb\n") == [(b"0123", b"789a"), b"b"]
    assert lines_of(b"01", b"23456789", b"abcdef", b"ghi\nb\n") == [(b"0123", b"fghi"), b"b"]


def test_a_discarded_reader_delivers_nothing_more() -> None:
    source, sink = os.pipe()
    delivered: list[Any] = []
    reader = LineReader(source, 3, lambda _: reader.discard(), lambda *ends: delivered.append(ends))
    os.write(sink, b"a\nb\nlong line\n")
    reader.read()
    assert delivered == []
    os.close(source)
    os.close(sink)


async def test_lines_that_do_not_fit_are_kept_and_can_be_withdrawn() -> None:
    source, sink = os.pipe()
    for descriptor in (source, sink):
        os.set_blocking(descriptor, False)
    broken: list[bool] = []
    writer = LineWriter(sink, lambda: broken.append(True))
    large = writer.write(b"x" * 200_000)
    kept, last = writer.write(b"kept"), writer.write(b"last")
    assert (large.begun, kept.begun, last.begun) == (True, False, False)
    writer.withdraw(kept)
    data = b""
    with anyio.fail_after(30):
        while not data.endswith(b"last\n"):
            with suppress(BlockingIOError):
                data += os.read(source, 65536)
            await anyio.lowlevel.checkpoint()
    assert data == b"x" * 200_000 + b"\nlast\n"
    assert writer.unsent == 0
    os.close(source)
    lost = writer.write(b"lost")
    assert broken == [True]
    assert not lost.begun
    writer.close()
    writer.close()
    assert not writer.write(b"after").begun
    os.close(sink)
