"""Commands that print until they are stopped."""

import os
import signal
from collections.abc import Iterator
from typing import TextIO

import pytest

from gatehouse.shared.service.stream_output import LineOutput, Stop


@pytest.fixture
def pipe() -> Iterator[tuple[TextIO, TextIO]]:
    """A pipe: the end to read from, and the end to write to."""
    ends = os.pipe()
    reader, writer = os.fdopen(ends[0], "r"), os.fdopen(ends[1], "w")
    yield reader, writer
    reader.close()
    # What a test could not write must not fail here.
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer.fileno())
    writer.close()


def test_each_record_is_a_line_that_is_flushed(pipe: tuple[TextIO, TextIO]) -> None:
    reader, writer = pipe
    output = LineOutput(writer)
    output.write([{"a": 1}, {"b": "x\ny"}])
    assert [reader.readline() for _ in range(2)] == ['{"a": 1}\n', '{"b": "x\\ny"}\n']
    output.wait(0)


def test_a_closed_pipe_ends_both_the_wait_and_the_write(pipe: tuple[TextIO, TextIO]) -> None:
    reader, writer = pipe
    output = LineOutput(writer)
    reader.close()
    with pytest.raises(BrokenPipeError):
        output.wait(60)
    with pytest.raises(BrokenPipeError):
        output.write([{}])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_is_noted_and_the_second_has_its_usual_effect(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    stop = Stop()
    with stop.at_signals():
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested
        assert signal.getsignal(number) is before


def test_without_a_signal_the_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with Stop().at_signals():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before
