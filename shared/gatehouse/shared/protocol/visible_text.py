"""Text that others read: a name is stored only if a person sees every character of it.

Two names that differ in an invisible character look alike, and an agent reads what a person does not see. A text from
outside that is not stored is escaped where it is shown (`redaction.printable`, or `escape_invisible` where a person
decides about it).
"""

import re
import unicodedata
from collections.abc import Container
from typing import Final

_BLANK: Final = re.compile(
    # Of Default_Ignorable_Code_Point (Unicode), those that str.isprintable accepts: variation selectors and fillers.
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8\U000e0000-\U000e0fff"
    # Characters without ink: joiners and fillers of single scripts, the blank Braille pattern, the object replacement
    # character, blank hieroglyphs, and a note without a head.
    "\u2800\u2d7f\ufffc\U0001107f\U00013441\U00013442\U00016fe4\U0001d159]"
)

JOINERS: Final = frozenset("\u200c\u200d")
"""Persian, Indic scripts and emoji need these."""


def is_visible(text: str, *, also: Container[str] = "") -> bool:
    """Tell whether a text has only assigned characters that a person sees, and spaces.

    Not visible are control, format, private-use and unassigned characters, variation selectors and blank fillers.

    Args:
        text: any text; an empty one is visible.
        also: further characters to accept.
    """
    return _BLANK.search(text) is None and all(one.isprintable() or one in also for one in text)


def escape_invisible(text: str) -> str:
    """Return a text on one line, with an escape for each character that a person does not see.

    An agent reads such characters, so they can hide instructions from the person who decides about a text.
    """
    if is_visible(text):
        return text
    return "".join(one if is_visible(one) else one.encode("unicode_escape").decode() for one in text)


def is_blank(text: str) -> bool:
    """Tell whether a text has nothing but spaces and joiners, so that a person sees no name."""
    return all(unicodedata.category(one) == "Zs" or one in JOINERS for one in text)


def check_display_name(owner: str, name: str, limit: int) -> None:
    """Check a display name. `owner` says in the error whose name it is, such as `client`.

    Raises:
        ValueError: the name is blank, longer than `limit` characters, or has a character that a person does not see.
    """
    if len(name) > limit or is_blank(name) or not is_visible(name):
        raise ValueError(f"A {owner} name must have 1 to {limit} visible characters.")
