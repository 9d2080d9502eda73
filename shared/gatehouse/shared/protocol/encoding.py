"""JSON and base64url, the encodings of tokens and messages: written for any parser, and read strictly.

Two parsers never read an accepted JSON document differently. In base64url, the last character of a text can have unused
bits. A reader that ignores them accepts several texts for the same bytes, so a changed token still verifies, and one
identifier has several texts.
"""

import base64
import json
import math
from collections.abc import Callable
from json import encoder
from typing import Any, Final

import jiter

MAX_JSON_DEPTH: Final = 50
"""Maximum number of arrays and objects around a value that is written. The official C# client of MCP reads 64, with the
envelope of the message."""


class InvalidJson(ValueError):
    """Not JSON, or JSON that two parsers may read differently. The message holds no input."""


class InvalidBase64url(ValueError):
    """The text is not canonical base64url. The message completes "the value is ..." and holds no input."""


_NUMBERS: Final = bytes.maketrans(b"123456789E", b"000000000e")
"""For `bytes.translate`: writes 0 for every digit, and e for E."""
_MANY_DIGITS: Final = b"0" * 20


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidJson("A number is too large.")
    return number


def _encoder(write_text: Callable[[str], str]) -> Callable[[Any], str]:
    """Return the `encode` of a JSONEncoder that writes no spaces and no NaN, and texts by `write_text`.

    It ends at a value that contains itself with a RecursionError.
    """
    # JSONEncoder.encode creates this object in each call, which takes longer than writing a small value.
    make_chunks = encoder.c_make_encoder(  # type: ignore[attr-defined]  # not in typeshed
        None, json.JSONEncoder().default, write_text, None, ":", ",", False, False, False
    )
    return lambda value: "".join(make_chunks(value, 0))


_encode = _encoder(encoder.encode_basestring)
_encode_compact = _encoder(encoder.encode_basestring_ascii)


def parse_json(document: bytes) -> Any:
    """Parse UTF-8 JSON (RFC 8259) strictly.

    Raises:
        InvalidJson: not UTF-8, a byte order mark, a syntax error, a repeated member (RFC 8259 4), a number that is not
            JSON or too large, a lone surrogate, or more than 200 levels of nesting.
    """
    try:
        value = jiter.from_json(document, allow_inf_nan=False, catch_duplicate_keys=True, cache_mode="keys")
    except ValueError as error:
        raise InvalidJson(_explain(document, str(error))) from None
    # A number that is too large for a float has an exponent of three digits, or hundreds of digits before it.
    numbers = document.translate(_NUMBERS)
    if b"0e000" in numbers or b"0e+000" in numbers or _MANY_DIGITS in numbers:
        json.loads(document, parse_float=_finite)
    return value


def _explain(document: bytes, error: str) -> str:
    """Say what is wrong, without the library's own text, which repeats the name of a member."""
    if error.startswith("Detected duplicate key"):
        return "An object has the same member twice."
    try:
        document.decode()
    except UnicodeDecodeError:
        return "The text is not valid UTF-8."
    return "The text is not valid JSON."


def format_json(value: Any) -> str:
    """Return a value as the text of a JSON document (RFC 8259) that any parser reads, without spaces.

    A text that is ASCII is the same as that of `compact_json`.

    Raises:
        InvalidJson: it contains NaN, an infinity, a lone surrogate, a number with too many digits or a type that JSON
            does not have, or is nested deeper than MAX_JSON_DEPTH.
    """
    try:
        text = _encode(value)
        text.encode()
    except UnicodeEncodeError:
        raise InvalidJson("Half of a surrogate pair is not text.") from None
    except TypeError:
        raise InvalidJson("There is a type that JSON does not have.") from None
    except RecursionError:
        raise InvalidJson(f"It is nested deeper than {MAX_JSON_DEPTH} levels.") from None
    except ValueError:
        raise InvalidJson("NaN, Infinity and numbers of thousands of digits are not JSON.") from None
    # Counting brackets is fast, and settles it for nearly every value.
    if text.count("{") + text.count("[") > MAX_JSON_DEPTH and _depth(value) > MAX_JSON_DEPTH:
        raise InvalidJson(f"It is nested deeper than {MAX_JSON_DEPTH} levels.")
    return text


def compact_json(value: Any) -> str:
    """Return a value that this program made as JSON text, in ASCII and without spaces.

    Raises:
        ValueError, TypeError: it contains NaN, an infinity or a type that JSON does not have.
    """
    return _encode_compact(value)


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list | tuple)]:
        depth += 1
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def encode_base64url(data: bytes) -> str:
    """Return the base64url text of `data`, without padding (RFC 4648 5, RFC 7515 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode_base64url(text: str) -> bytes:
    """Return the bytes that `encode_base64url` would write as exactly this text.

    Raises:
        InvalidBase64url: a character outside the alphabet, padding, an impossible length, or unused bits that are set.
    """
    try:
        data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except ValueError:
        raise InvalidBase64url("not base64url") from None
    if encode_base64url(data) != text:
        raise InvalidBase64url("not canonical base64url")
    return data
