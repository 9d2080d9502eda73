"""What an access token looks like."""

import re
from typing import Final, TypeGuard

_MAX_LENGTH: Final = 8192
"""Characters."""

_B64TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*", re.ASCII)
"""RFC 6750 section 2.1. No other text fits into an Authorization header."""


def is_bearer_token(value: object) -> TypeGuard[str]:
    """Tell whether a value can be sent as a bearer token."""
    return isinstance(value, str) and len(value) <= _MAX_LENGTH and _B64TOKEN.fullmatch(value) is not None
