"""Settings for tests and benchmarks that send more requests than the limits allow by default."""

from typing import Final

_MANY: Final = "9999999/second"

AUTHSERVER: Final = {
    "limit_authentication_failures": _MANY,
    "limit_token_requests": _MANY,
    "limit_revocations": _MANY,
    "limit_introspections": _MANY,
}
RESOURCESERVER: Final = {"limit_calls": _MANY, "limit_tool_calls": _MANY, "limit_concurrent_calls": 4096}
"""By field of the settings. The limits are raised and not off, so that they are counted as in production."""

VARIABLES: Final = {
    f"{prefix}_{name.upper()}": str(value)
    for prefix, fields in (("AUTHSERVER", AUTHSERVER), ("RESOURCESERVER", RESOURCESERVER))
    for name, value in fields.items()
}
"""The same as environment variables of both servers."""

OFF: Final = dict.fromkeys(VARIABLES, "0")
"""Environment variables of both servers without limits."""
