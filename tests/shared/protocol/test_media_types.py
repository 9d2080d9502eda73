"""Media types: which header values are read, and as what."""

import pytest

from gatehouse.shared.protocol.media_types import InvalidMediaType, accepts, parse_accept, parse_media_type

JSON = "application/json"


@pytest.mark.parametrize(
    ("value", "name", "parameters"),
    [
        ("application/json", JSON, {}),
        ("Application/JSON", JSON, {}),
        ("  application/json\t", JSON, {}),
        ("application/json;", JSON, {}),
        ("application/json; ; ;charset=utf-8;", JSON, {"charset": "utf-8"}),
        ("application/json;CharSet=UTF-8", JSON, {"charset": "UTF-8"}),
        ('application/json ; charset="utf-8" ; v=1', JSON, {"charset": "utf-8", "v": "1"}),
        (r'application/json; a="x\"; charset=\u"', JSON, {"a": 'x"; charset=u'}),
        ('application/json; a=""', JSON, {"a": ""}),
        ("application/vnd.a+json", "application/vnd.a+json", {}),
        ("*/*", "*/*", {}),
    ],
)
def test_a_media_type_is_read_without_regard_to_case(value: str, name: str, parameters: dict[str, str]) -> None:
    media_type = parse_media_type(value)
    assert (media_type.name, media_type.parameters) == (name, parameters)


@pytest.mark.parametrize(
    "value",
    [
        *("", ";", "json", "application/", "/json", "application /json", "application/json, application/json"),
        *("application/json charset=utf-8", "application/json; charset", "application/json; charset=", "a/b; =c"),
        *("a/b; c = d", 'a/b; c="d', 'a/b; c="d"e', "a/b; c=d e", "a/b; c=d; C=d", "a/b; c=\xe9", "a/b\n"),
        "a/b" + " ;" * 4000 + "!",
    ],
)
def test_a_malformed_media_type_is_refused(value: str) -> None:
    with pytest.raises(InvalidMediaType):
        parse_media_type(value)


@pytest.mark.parametrize(
    ("lines", "accepted"),
    [
        ([JSON], True),
        (["APPLICATION/JSON; charset=utf-8"], True),
        (["text/html, application/*;q=0.1"], True),
        (["text/html", "application/json"], True),
        (["text/html,,", "", "*/*"], True),
        (["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"], True),
        (["application/json;q=0, application/json;v=2"], True),
        ([], False),
        ([""], False),
        (["text/html"], False),
        (["text/event-stream, application/xml"], False),
        (["application/json-patch+json"], False),
        (["application/json;q=0"], False),
        (["application/json;q=0.000, */*"], False),
        (["application/*;q=0, */*"], False),
        (["*/*;q=0"], False),
        (["application/json; q"], False),
        (['text/html;a=", application/json, "'], False),
        (['text/html;a=", application/json'], False),
        (['text/html;a=", application/json, \\'], False),
    ],
)
def test_the_most_specific_range_decides(lines: list[str], accepted: bool) -> None:
    assert accepts(parse_accept(lines), JSON) is accepted


def test_quotes_without_an_end_are_read_once() -> None:
    """CWE-1333: a search that restarts at every quote would need hours for this header."""
    assert accepts(parse_accept([JSON]), JSON)
    assert not accepts(parse_accept(['"' + '\\"' * 500_000 + "\\", JSON]), JSON)
