"""Lengths of time as people write them."""

import pytest

from gatehouse.shared.service.durations import parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("12h", 43_200), ("7d", 604_800), ("0s", 0), ("007d", 604_800)]
)
def test_a_length_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "7", "d", "7w", "-7d", "+7d", "7 d", "7D", "1.5h", "7d7h", "1234567s", "\u0667d"])
def test_whatever_else_is_none(text: str) -> None:
    assert parse_duration("7d") is not None
    assert parse_duration(text) is None
