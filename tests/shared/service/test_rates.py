"""Rates as settings and tools declare them."""

import pytest

from gatehouse.shared.service.rates import UNLIMITED, Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "rate", "seconds"),
    [
        ("10/second", Rate(10, "second"), 1),
        ("60/minute", Rate(60, "minute"), 60),
        ("9999999/hour", Rate(9_999_999, "hour"), 3600),
    ],
)
def test_a_rate_is_a_number_in_a_unit_of_time(text: str, rate: Rate, seconds: int) -> None:
    parsed = parse_rate(text)
    assert (parsed, parsed.seconds, str(parsed)) == (rate, seconds, text)


@pytest.mark.parametrize("text", ["off", "0"])
def test_off_and_0_stand_for_no_limit(text: str) -> None:
    assert parse_rate(text) == UNLIMITED
    assert str(parse_rate(text)) == "off"


@pytest.mark.parametrize(
    "text",
    ["", "60", "60/day", "60/minutes", "0/minute", "-1/minute", "1.5/minute", "6 /minute", "10000000/hour", "٦/minute"],
)
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be NUMBER/second"):
        parse_rate(text)


def test_the_share_of_a_worker_is_rounded_up() -> None:
    assert [Rate(10, "minute").share(workers).requests for workers in (1, 2, 3, 64)] == [10, 5, 4, 1]
    assert UNLIMITED.share(4) == UNLIMITED
