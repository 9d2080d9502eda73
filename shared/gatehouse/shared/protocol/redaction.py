"""Makes text from outside safe to store and to show: without secrets, on one line."""

import re
from typing import Final

# A match runs to the end even if the text is not a token. Otherwise the search would restart at every character.
_TOKEN = re.compile(r"eyJ[A-Za-z0-9_-]+(\.[A-Za-z0-9_.-]+)?")
_SECRET = re.compile(r"gt[hr]s_[A-Za-z0-9_-]+|(?i:basic|bearer)\s+[A-Za-z0-9+/=._~-]{16,}")
MASK: Final = "[masked]"
_MAX_QUOTED = 100


def mask(text: str) -> str:
    """Return the text with every token, client secret and authorization header in it masked."""
    # Most texts are identifiers. A search that cannot match is skipped, because it costs more than the rest.
    if "eyJ" in text:
        text = _TOKEN.sub(lambda found: MASK if found[1] else found[0], text)
    if "gths_" in text or "gtrs_" in text or _has_several_words(text):
        text = _SECRET.sub(MASK, text)
    return text


def printable(text: str) -> str:
    """Return the text with every character that a terminal may act upon replaced by an escape (CWE-117, CWE-150)."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def quoted(text: str) -> str:
    """Return the part of a text that a message may repeat: 100 characters, without secrets, printable."""
    return printable(mask(text)[:_MAX_QUOTED])


def as_word(text: str) -> str:
    """Return a text in quotation marks if a reader would not see where it ends: with a space, or empty.

    A quotation mark in it is replaced by an escape. Otherwise it could look like several texts (CWE-451).
    """
    if text and " " not in text and '"' not in text:
        return text
    return '"{}"'.format(text.replace('"', _escape('"')))


def _has_several_words(text: str) -> bool:
    """Tell whether whitespace separates two parts of a text, as it does in an authorization header."""
    return len(text.split(None, 1)) > 1


def _escape(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
