"""The digest of a tool: canonical JSON (RFC 8785), and what has none."""

import hashlib
import math
import struct
from typing import Any

import pytest

from gatehouse.resourceserver.catalogue.tool_digest import tool_digest
from gatehouse.shared.protocol.encoding import parse_json

TOOL: dict[str, Any] = {
    "name": "add_note",
    "description": "Add a note.",
    "inputSchema": {"type": "object", "properties": {"text": {"type": "string", "maxLength": 200}}},
    "annotations": {"readOnlyHint": False},
    "x-unknown": [1, None],
}


def digest_of(canonical: str) -> str:
    return f"sha256:{hashlib.sha256(canonical.encode()).hexdigest()}"


def test_the_sample_of_the_rfc_is_canonical() -> None:
    """RFC 8785, sections 3.2.2 and 3.2.4."""
    sample = rb"""{
      "numbers": [333333333.33333329, 1E30, 4.50, 2e-3, 0.000000000000000000000000001],
      "string": "\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/",
      "literals": [null, true, false]
    }"""
    canonical = bytes.fromhex(
        "7b226c69746572616c73223a5b6e756c6c2c747275652c66616c73655d2c226e756d62657273223a5b3333333333333333332e3333333333"
        "33332c31652b33302c342e352c302e3030322c31652d32375d2c22737472696e67223a22e282ac245c75303030665c6e4127425c225c5c5c"
        "5c5c222f227d"
    )
    assert tool_digest(parse_json(sample)) == f"sha256:{hashlib.sha256(canonical).hexdigest()}"


def test_members_are_sorted_by_utf_16_code_units() -> None:
    """RFC 8785, section 3.2.3."""
    sample = (
        rb'{"\u20ac": "Euro Sign", "\r": "Carriage Return", "\ufb33": "Hebrew Letter Dalet With Dagesh", "1": "One",'
        rb'"\ud83d\ude00": "Emoji: Grinning Face", "\u0080": "Control",'
        rb'"\u00f6": "Latin Small Letter O With Diaeresis"}'
    )
    canonical = (
        '{"\\r":"Carriage Return","1":"One","\x80":"Control","\xf6":"Latin Small Letter O With Diaeresis",'
        '"\u20ac":"Euro Sign","\U0001f600":"Emoji: Grinning Face","\ufb33":"Hebrew Letter Dalet With Dagesh"}'
    )
    assert tool_digest(parse_json(sample)) == digest_of(canonical)


@pytest.mark.parametrize(
    ("bits", "text"),
    [
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("8000000000000001", "-5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("ffefffffffffffff", "-1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("c340000000000000", "-9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef4f", "999999999999999900000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("41b3de4355555554", "333333333.33333325"),
        ("41b3de4355555555", "333333333.3333333"),
        ("41b3de4355555556", "333333333.3333334"),
        ("41b3de4355555557", "333333333.33333343"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_in_the_rfc(bits: str, text: str) -> None:
    """RFC 8785, appendix B."""
    [number] = struct.unpack(">d", bytes.fromhex(bits))
    assert tool_digest({"default": number}) == digest_of(f'{{"default":{text}}}')


def test_order_and_spelling_of_the_json_do_not_change_the_digest() -> None:
    one = rb'{"name": "add", "inputSchema": {"minimum": 1.0, "title": "\u0061\/"}}'
    other = rb'{"inputSchema":{"title":"a/","minimum":1},"name":"add"}'
    assert tool_digest(parse_json(one)) == tool_digest(parse_json(other))


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"name": "add_notes"}, id="name"),
        pytest.param({"description": "Add a note. "}, id="description"),
        pytest.param({"description": None}, id="null instead of a text"),
        pytest.param({"inputSchema": {"type": "object", "properties": {"text": {"type": "string"}}}}, id="schema"),
        pytest.param({"annotations": {"readOnlyHint": True}}, id="annotation"),
        pytest.param({"x-unknown": [None, 1]}, id="unknown member"),
        pytest.param({"title": "Add"}, id="further member"),
        pytest.param({"x-unknown": [True, None]}, id="true instead of 1"),
    ],
)
def test_any_change_of_a_tool_changes_the_digest(change: dict[str, Any]) -> None:
    assert tool_digest(TOOL) == tool_digest(dict(reversed(TOOL.items())))
    assert tool_digest({**TOOL, **change}) != tool_digest(TOOL)


def test_a_missing_member_changes_the_digest() -> None:
    for name in TOOL:
        assert tool_digest({key: value for key, value in TOOL.items() if key != name}) != tool_digest(TOOL)


def nested(depth: int) -> Any:
    value: Any = "secret"
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (2**53, "an integer beyond"),
        (-(2**53), "an integer beyond"),
        (math.nan, "NaN"),
        (math.inf, "NaN or an infinity"),
        ("secret\ud800", "half of a surrogate pair"),
        ({"secret\udc00": 1}, "half of a surrogate pair"),
        ({1: "secret"}, "not JSON"),
        (b"secret", "not JSON"),
        (10**5000, "not JSON"),
        (nested(100_000), "too many levels"),
    ],
    ids=[
        "2**53",
        "-2**53",
        "NaN",
        "infinity",
        "surrogate",
        "surrogate name",
        "number name",
        "bytes",
        "digits",
        "depth",
    ],
)
def test_a_tool_without_canonical_json_has_no_digest(value: object, reason: str) -> None:
    assert tool_digest({**TOOL, "default": 2**53 - 1})
    with pytest.raises(ValueError, match=rf"^the tool has no canonical JSON \(RFC 8785\): it has .*{reason}") as error:
        tool_digest({**TOOL, "default": value})
    assert "secret" not in str(error.value)
