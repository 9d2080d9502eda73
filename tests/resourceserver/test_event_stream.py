"""The reader of event streams, however the bytes are split."""

import pytest

from gatehouse.resourceserver.upstream.http.event_stream import EventReader

STREAM = (
    b": a comment\r\n\r\n"
    b"id: 1\nretry: 5\ndata\n\n"
    b"event: message\ndata: one\n\n"
    b"data:two\rdata:  more\r\r"
    b"event: other\ndata: ignored\n\n"
    b"unknown: field\r\ndata: three\r\n\r\n"
    b"data: unfinished\n"
)
MESSAGES = [b"one", b"two\n more", b"three"]


def read(*chunks: bytes) -> list[bytes]:
    reader = EventReader()
    return [message for chunk in chunks for message in reader.feed(chunk)]


def test_messages_are_read_from_one_chunk() -> None:
    assert read(STREAM) == MESSAGES


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_messages_are_read_from_chunks_of_any_size(size: int) -> None:
    assert read(*(STREAM[start : start + size] for start in range(0, len(STREAM), size))) == MESSAGES


def test_a_line_end_in_two_chunks_is_one() -> None:
    assert read(b"data: one\r", b"\ndata: two\r", b"\n\r", b"\n") == [b"one\ntwo"]


def test_a_message_is_complete_with_its_empty_line() -> None:
    assert read(b"data: one\r\r") == [b"one"]
    assert read(b"data: one\n") == []
