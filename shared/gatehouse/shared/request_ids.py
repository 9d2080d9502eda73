"""Request identifiers: how a caller's refusal is found again in logs and audit."""

import secrets


def new_request_id() -> str:
    """Return `req_` and 24 hexadecimal digits. Never taken from the caller, who could forge a log line."""
    return f"req_{secrets.token_hex(12)}"
