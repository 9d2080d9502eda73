"""The text form of a time."""

from gatehouse.shared.protocol.clock import iso_time


def test_a_time_is_utc_to_the_second_or_the_millisecond() -> None:
    """RFC 3339."""
    assert iso_time(0) == "1970-01-01T00:00:00Z"
    assert iso_time(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert iso_time(1_800_000_000.123, "milliseconds") == "2027-01-15T08:00:00.123Z"
