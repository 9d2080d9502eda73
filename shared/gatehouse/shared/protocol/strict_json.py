"""Strict JSON: two readers of the same bytes cannot disagree about their meaning."""

import json
import math
from typing import Any, NoReturn


class InvalidJson(ValueError):
    """The bytes are not JSON, or JSON that two parsers may read differently. The message holds no input."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise InvalidJson("An object has the same member twice.")
    return members


def _refuse_constant(_: str) -> NoReturn:
    raise InvalidJson("NaN and Infinity are not JSON.")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise InvalidJson("A number is too large.")
    return number


def loads(document: bytes) -> Any:
    """Parse UTF-8 JSON (RFC 8259) strictly.

    Raises:
        InvalidJson: not UTF-8, a byte order mark, a syntax error, a repeated member (RFC 8259 4), a number that
            is not JSON or has too many digits, a lone surrogate, or nesting too deep to read.
    """
    try:
        text = document.decode("utf-8")
        value = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse_constant, parse_float=_finite)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except InvalidJson:
        raise
    except UnicodeError:
        raise InvalidJson("The text is not valid UTF-8.") from None
    except (ValueError, RecursionError):
        raise InvalidJson("The text is not valid JSON.") from None
    return value
