"""NumericDate (RFC 7519 2): seconds since 1970-01-01T00:00:00Z, read as whole seconds within one range."""

from typing import Any, TypeGuard

MAX_NUMERIC_DATE = 253402300799
"""9999-12-31T23:59:59Z, the last second that the standard library can show."""


def is_numeric_date(value: Any) -> TypeGuard[int]:
    """Tell whether a JSON value is a whole number of seconds from 0 to MAX_NUMERIC_DATE.

    RFC 7519 also allows fractions. Neither server issues them, and both refuse them.
    """
    # bool is a subclass of int.
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_NUMERIC_DATE
