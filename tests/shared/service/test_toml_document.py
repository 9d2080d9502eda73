"""TOML with the lines of its keys."""

import pytest

from gatehouse.shared.service.toml_document import InvalidToml, parse_toml

TEXT = '''\
# [comment]
name = "a"  # = [

text = """
[not.a.table]
name = 1
"""
[one]
listed = [
  "]",
  [1, 2],
]
"quoted key" = 1
[one.two]
dotted.key = true
inline = { deep = { deeper = 1 } }
[[many]]
of = 1
[three.four]
'''


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize(
    ("path", "line"),
    [
        (("name",), 2),
        (("text",), 4),
        (("one",), 8),
        (("one", "listed"), 9),
        (("one", "quoted key"), 13),
        (("one", "two"), 14),
        (("one", "two", "dotted"), 15),
        (("one", "two", "dotted", "key"), 15),
        (("one", "two", "inline", "deep", "deeper"), 16),
        (("many",), 17),
        (("many", "of"), 18),
        (("three", "four"), 19),
        pytest.param(("one", "two", "missing"), 14, id="the table of a missing key"),
        pytest.param(("missing",), 1, id="a missing key of the whole document"),
        pytest.param((), 1, id="the document"),
    ],
)
def test_the_line_of_a_key_is_found(path: tuple[str, ...], line: int, newline: str) -> None:
    assert parse_toml(TEXT.replace("\n", newline)).line(path) == line


def test_the_lines_of_deep_keys_are_those_of_the_keys_around_them() -> None:
    document = parse_toml(f"\na.{'b.' * 2000}c = 1")
    assert document.line(("a", "b")) == 2


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        pytest.param("a = 1\nb =\n\n\n", "line 2: Invalid value", id="no value"),
        pytest.param("a = 1\nb = ", "line 2: Invalid value", id="the end"),
        pytest.param("a = 1\na = 2\n", "line 2: Cannot overwrite a value", id="a duplicate key"),
        pytest.param("[a]\n[b]\n[a]\n", "line 3: Cannot declare", id="a duplicate table"),
        pytest.param("a = 1\r\n\x1b", "line 2: Invalid statement", id="a control character"),
        pytest.param("a = '\x1b'", r"line 1: Found invalid character '\\x1b'", id="a control character in a string"),
        pytest.param(f"a = {'[' * 5000}", "nested too deep", id="deep"),
        pytest.param(f"a = {'1' * 5000}", "thousands of digits", id="a huge number"),
    ],
)
def test_what_is_not_toml_is_refused_with_its_line(text: str, problem: str) -> None:
    with pytest.raises(InvalidToml, match=problem):
        parse_toml(text)
