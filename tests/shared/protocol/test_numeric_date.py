"""Which JSON values are a NumericDate."""

from typing import Any

import pytest

from gatehouse.shared.protocol.claims import MAX_NUMERIC_DATE, is_numeric_date


@pytest.mark.parametrize("value", [0, 1_800_000_000, 253402300799])
def test_whole_seconds_up_to_the_year_9999_are_a_date(value: int) -> None:
    assert is_numeric_date(value)
    assert MAX_NUMERIC_DATE == 253402300799


@pytest.mark.parametrize("value", [-1, 253402300800, 1.0, 1.5, True, False, None, "1800000000", [1]], ids=repr)
def test_any_other_value_is_not_a_date(value: Any) -> None:
    assert not is_numeric_date(value)
