"""base64url without padding (RFC 4648 5, RFC 7515 2), read in one spelling only.

The last character of a text can have unused bits. A reader that ignores them accepts several texts for the same
bytes, so that a changed token still verifies, and one identifier has several texts.
"""

import base64


class InvalidBase64url(ValueError):
    """The text is not canonical base64url. The message completes "the value is ..." and holds no input."""


def encode(data: bytes) -> str:
    """Return the base64url text of `data`, without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Return the bytes that `encode` would write as exactly this text.

    Raises:
        InvalidBase64url: a character outside the alphabet, padding, an impossible length, or unused bits that are set.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidBase64url("not base64url") from None
    if encode(data) != text:
        raise InvalidBase64url("not canonical base64url")
    return data
