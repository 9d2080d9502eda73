"""Encoding: accepted JSON means the same to every parser, and each byte string has one text in base64url."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.encoding import (
    MAX_JSON_DEPTH,
    InvalidBase64url,
    InvalidJson,
    compact_json,
    decode_base64url,
    encode_base64url,
    format_json,
    parse_json,
)

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=10)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4))


@given(VALUES, st.booleans())
def test_every_value_is_read_as_it_was_written(value: Any, ascii_only: bool) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.binary(max_size=30) | st.text('{}[]",:\\u0019eE+-.ntf ', max_size=30).map(str.encode))
def test_accepted_documents_equal_the_standard_librarys_result(document: bytes) -> None:
    try:
        value = parse_json(document)
    except InvalidJson:
        return
    assert json.loads(document) == value


@pytest.mark.parametrize(
    "document",
    [
        pytest.param(b'{"a": 1, "a": 1}', id="a-duplicate-member"),
        pytest.param(b'{"a": 1, "\\u0061": 2}', id="a-duplicate-member-one-escaped"),
        pytest.param(b'[{"x": {"a": 1, "b": 2, "a": 3}}]', id="a-nested-duplicate-member"),
        pytest.param(b"NaN", id="nan"),
        pytest.param(b"[Infinity]", id="infinity"),
        pytest.param(b"-Infinity", id="minus-infinity"),
        pytest.param(b"1e400", id="a-number-too-large-for-a-float"),
        pytest.param(b"-1.5E+0000400", id="an-exponent-with-leading-zeros"),
        pytest.param(b"1" * 260 + b".0e99", id="a-number-too-large-with-two-digits-of-exponent"),
        pytest.param(b'{"e300": [1' + b"0" * 309 + b".0]}", id="a-number-too-large-without-exponent"),
        pytest.param(b"9" * 5000, id="too-many-digits"),
        pytest.param(b"01", id="a-leading-zero"),
        pytest.param(b"+1", id="a-plus"),
        pytest.param(b"0x10", id="hexadecimal"),
        pytest.param(b"", id="nothing"),
        pytest.param(b" ", id="a-blank"),
        pytest.param(b"{} {}", id="two-values"),
        pytest.param(b"{}\x00", id="a-trailing-nul"),
        pytest.param(b"[1,]", id="a-trailing-comma"),
        pytest.param(b"{'a': 1}", id="single-quotes"),
        pytest.param(b"/* */ {}", id="a-comment"),
        pytest.param(b'"a\nb"', id="a-raw-newline"),
        pytest.param(b"\xef\xbb\xbf{}", id="a-byte-order-mark"),
        pytest.param("{}".encode("utf-16"), id="utf-16"),
        pytest.param(b'"\xff"', id="not-utf-8"),
        pytest.param(b'"\xed\xa0\x80"', id="an-encoded-surrogate"),
        pytest.param(b'"\\ud800"', id="a-lone-surrogate"),
        pytest.param(b'{"\\udfff": 1}', id="a-lone-surrogate-in-a-name"),
        pytest.param(b"[" * 100_000, id="open-lists"),
        pytest.param(b"[" * 100_000 + b"]" * 100_000, id="deep-lists"),
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep-objects"),
    ],
)
def test_invalid_or_ambiguous_json_is_refused(document: bytes) -> None:
    """RFC 8259 4 (names should be unique), 6 (numbers), 8.1 (UTF-8, no byte order mark), 8.2 (surrogates)."""
    with pytest.raises(InvalidJson):
        parse_json(document)


@pytest.mark.parametrize(
    "number", ["1e-400", "1.7976931348623157e308", "1E+99", "0.1e003", "1" * 300 + ".5", "9" * 4300]
)
def test_large_numbers_are_read_exactly(number: str) -> None:
    assert parse_json(f'[{number}, "1e999"]'.encode()) == [json.loads(number), "1e999"]


def test_a_surrogate_pair_is_one_character() -> None:
    assert parse_json(b'"\\ud83d\\ude00"') == "\U0001f600"


def test_a_refusal_does_not_repeat_the_document() -> None:
    for document in (b'{"hunter2": 1, "hunter2": 2}', b"[hunter2]", b'"hunter2', b'"hunter2\xff"'):
        with pytest.raises(InvalidJson) as refusal:
            parse_json(document)
        assert "hunter2" not in str(refusal.value)
        assert refusal.value.__cause__ is None


# Writing


@given(VALUES)
def test_what_is_written_is_read_as_the_same(value: Any) -> None:
    assert parse_json(format_json(value).encode()) == value


@given(VALUES)
def test_values_are_written_as_by_the_standard_library(value: Any) -> None:
    assert compact_json(value) == json.dumps(value, separators=(",", ":"))
    assert format_json(value) == json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def test_a_failure_to_write_does_not_affect_the_next_value() -> None:
    shared = {"a": [1]}
    for unwritable in ([shared, b"x"], [shared, float("nan")]):
        with pytest.raises(InvalidJson):
            format_json(unwritable)
    assert format_json([shared, shared]) == '[{"a":[1]},{"a":[1]}]'


def nested(levels: int) -> Any:
    value: Any = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        (float("nan"), "NaN"),
        (float("inf"), "NaN"),
        pytest.param(10**5000, "thousands of digits", id="a-long-number"),
        ("\ud83d", "surrogate"),
        ({"\udca0": 1}, "surrogate"),
        (b"x", "type that JSON does not have"),
        ({1j: 1}, "type that JSON does not have"),
        (nested(MAX_JSON_DEPTH + 1), "nested deeper"),
        (nested(5000), "nested deeper"),
    ],
)
def test_what_is_not_json_is_not_written(value: Any, problem: str) -> None:
    for container in (value, [value], {"a": [value]}):
        with pytest.raises(InvalidJson, match=problem):
            format_json(container)


def test_values_are_written_up_to_the_maximum_depth() -> None:
    assert parse_json(format_json([nested(MAX_JSON_DEPTH - 1), *([[]] * 100)]).encode())


def test_bytes_are_written_in_the_url_alphabet_without_padding() -> None:
    """RFC 4648 5."""
    assert encode_base64url(b"\xfb\xff\xfe\x01") == "-__-AQ"
    assert decode_base64url("-__-AQ") == b"\xfb\xff\xfe\x01"


@given(st.binary(max_size=64))
def test_decoding_returns_what_was_encoded(data: bytes) -> None:
    assert decode_base64url(encode_base64url(data)) == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "A!", "AA\n", " AA", "\N{LATIN SMALL LETTER E WITH ACUTE}A"])
def test_text_that_is_not_base64url_is_refused(text: str) -> None:
    with pytest.raises(InvalidBase64url, match=r"^not base64url$"):
        decode_base64url(text)


@pytest.mark.parametrize("text", ["AQ=", "AQ==", "AR", "AQJ", "+/+/", "-__-A+"])
def test_a_noncanonical_encoding_is_refused(text: str) -> None:
    with pytest.raises(InvalidBase64url, match=r"^not canonical base64url$"):
        decode_base64url(text)
