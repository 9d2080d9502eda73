"""Types for text arguments: limited in length, without control characters and invisible characters."""

from typing import Annotated, Final

from pydantic import AfterValidator, Field, StringConstraints
from pydantic_core import PydanticCustomError

from gatehouse.shared.protocol.scopes import SCOPE_TOKEN
from gatehouse.shared.protocol.visible_text import JOINERS, is_blank, is_visible

_PLAIN: Final = r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_DOMAIN: Final = rf"(?:{_LABEL}\.)+[A-Za-z]{{2,63}}"
_MAILBOX: Final = r"[A-Za-z0-9_%+'-]+(?:\.[A-Za-z0-9_%+'-]+)*"

_SPACES: Final = frozenset("\u00a0\u1680\u202f\u205f\u3000").union(map(chr, range(0x2000, 0x200B)))
"""The spaces of Unicode other than the usual one. Japanese names have one between their parts."""


def _check_visible(text: str) -> str:
    """Reject characters that reverse text direction, or that an agent reads and a person does not see."""
    if not is_visible(text, also=JOINERS | _SPACES):
        raise PydanticCustomError("text_invisible", "must not have invisible characters")
    return text


def _check_name(text: str) -> str:
    if is_blank(text):
        raise PydanticCustomError("text_blank", "must not be blank")
    return _check_visible(text)


DisplayName = Annotated[
    str,
    Field(
        min_length=1,
        max_length=128,
        pattern=f"^{_PLAIN}+$",
        description="Display name, without control characters.",
    ),
    AfterValidator(_check_name),
]
Description = Annotated[
    str,
    Field(max_length=512, pattern=f"^{_PLAIN}*$", description="Purpose, in one line without control characters."),
    AfterValidator(_check_visible),
]
SearchText = Annotated[
    str, Field(min_length=1, max_length=200, pattern=f"^{_PLAIN}+$", description="Search words, such as: audit log.")
]
EmailAddress = Annotated[
    str,
    StringConstraints(to_lower=True),
    Field(
        max_length=254,
        pattern=f"^{_MAILBOX}@{_DOMAIN}$",
        description="An ASCII email address; stored in lower case.",
    ),
]
EmailDomain = Annotated[
    str,
    StringConstraints(to_lower=True),
    Field(max_length=253, pattern=f"^{_DOMAIN}$", description="Domain part of an email address; stored in lower case."),
]
ScopeName = Annotated[
    str,
    Field(
        pattern=f"^{SCOPE_TOKEN.pattern}$",
        description="An OAuth scope such as invoices:read, without spaces, quotes and backslashes.",
    ),
]
CreatedAt = Annotated[int, Field(description="Seconds since 1970-01-01T00:00:00Z.")]
