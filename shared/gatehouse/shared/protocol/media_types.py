"""Media types in HTTP headers (RFC 9110 8.3.1, 12.5.1): Content-Type and Accept."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_WORD = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_NAME = re.compile(rf"{_WORD}/{_WORD}")
# One parameter at a time: a pattern for all of them could split the same spaces in many ways.
_PARAMETER = re.compile(rf'[ \t]*;[ \t]*(?:({_WORD})=(?:({_WORD})|"((?:[^"\\]|\\.)*)"))?')
_QUOTED_PAIR = re.compile(r"\\(.)")
# A quoted string without an end runs to the end of the text. Otherwise the search would restart at every quote.
_ELEMENT = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*(?:"|\\?\Z))+', re.DOTALL)
_ZERO = re.compile(r"0(\.0*)?")


class InvalidMediaType(ValueError):
    """The header value is not one media type."""


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type or media range. Its name and the names of its parameters are in lower case."""

    name: str
    parameters: Mapping[str, str]
    """Values are as sent, without quotes."""


def parse_media_type(value: str) -> MediaType:
    """Read the value of a Content-Type header, or one element of Accept.

    Names are case-insensitive, a value may be quoted, and a semicolon without a parameter is allowed (RFC 9110 5.6.6).

    Raises:
        InvalidMediaType: the value has another form, or a parameter twice.
    """
    value = value.strip(" \t")
    name = _NAME.match(value)
    if name is None:
        raise InvalidMediaType("not a media type")
    position, parameters = name.end(), dict[str, str]()
    while position < len(value):
        parameter = _PARAMETER.match(value, position)
        if parameter is None:
            raise InvalidMediaType("a malformed parameter")
        position = parameter.end()
        key, token, quoted = parameter.groups()
        if key is None:
            continue
        if key.lower() in parameters:
            raise InvalidMediaType("a parameter twice")
        parameters[key.lower()] = token if token is not None else _QUOTED_PAIR.sub(r"\1", quoted)
    return MediaType(name[0].lower(), parameters)


def parse_accept(lines: Sequence[str]) -> list[MediaType]:
    """Read the lines of the Accept headers of a request as one list. Malformed elements are ignored.

    An ignored element accepts nothing. The default header of Java's HttpURLConnection has one.
    """
    ranges = []
    for element in _ELEMENT.findall(", ".join(lines)):
        try:
            ranges.append(parse_media_type(element))
        except InvalidMediaType:
            continue
    return ranges


def accepts(ranges: Sequence[MediaType], media_type: str) -> bool:
    """Tell whether Accept allows a media type: the most specific range decides, and a weight of 0 excludes.

    Args:
        ranges: the result of parse_accept.
        media_type: without parameters, in lower case. Ranges are compared without their parameters.
    """
    for name in (media_type, f"{media_type.partition('/')[0]}/*", "*/*"):
        weights = [found.parameters.get("q", "1") for found in ranges if found.name == name]
        if weights:
            return any(_ZERO.fullmatch(weight) is None for weight in weights)
    return False
