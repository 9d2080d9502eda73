"""Status lists, packed and unpacked (draft-ietf-oauth-status-list 4)."""

import base64
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.status_list import (
    MAX_SIZE,
    InvalidStatusList,
    decode,
    encode,
    is_set,
    list_uri,
    parse_list_uri,
    set_bits,
)

ISSUER = "https://as.example.com"


def packed(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def test_the_example_of_the_draft_is_read_and_written() -> None:
    """Section 4.1 and 4.2: sixteen tokens, the first of them revoked, the second not."""
    statuses = [1, 0, 0, 1, 1, 1, 0, 1, 1, 1, 0, 0, 0, 1, 0, 1]
    bits = bytearray(2)
    for index, status in enumerate(statuses):
        set_bits(bits, index, status)
    assert bits == b"\xb9\xa3"
    assert encode(bytes(bits)) == {"bits": 1, "lst": "eNrbuRgAAhcBXQ"}
    assert decode({"bits": 1, "lst": "eNrbuRgAAhcBXQ"}) == bits
    assert [is_set(bytes(bits), index) for index in range(16)] == [bool(status) for status in statuses]


@given(st.integers(0, 64), st.integers(0, 64))
def test_bits_set_together_equal_bits_set_one_by_one(start: int, size: int) -> None:
    together, one_by_one = bytearray(16), bytearray(16)
    set_bits(together, start, size)
    for index in range(start, start + size):
        set_bits(one_by_one, index)
    assert together == one_by_one
    assert [is_set(bytes(together), index) for index in range(128)] == [
        start <= index < start + size for index in range(128)
    ]


@given(st.binary(min_size=1, max_size=4096))
def test_every_list_survives_being_packed(bits: bytes) -> None:
    assert decode(encode(bits)) == bits


@pytest.mark.parametrize(
    ("claim", "reason"),
    [
        (None, "single bits"),
        ([], "single bits"),
        ({"lst": "eNrbuRgAAhcBXQ"}, "single bits"),
        ({"bits": 2, "lst": "eNrbuRgAAhcBXQ"}, "single bits"),
        ({"bits": True, "lst": "eNrbuRgAAhcBXQ"}, "single bits"),
        ({"bits": 1}, "non-empty string"),
        ({"bits": 1, "lst": 7}, "non-empty string"),
        ({"bits": 1, "lst": ""}, "non-empty string"),
        ({"bits": 1, "lst": "eNrb uRgAAhcBXQ"}, "base64url of zlib"),
        ({"bits": 1, "lst": "é"}, "base64url of zlib"),
        ({"bits": 1, "lst": packed(b"not zlib")}, "base64url of zlib"),
        ({"bits": 1, "lst": packed(zlib.compress(b""))}, "empty"),
        ({"bits": 1, "lst": packed(zlib.compress(b"x" * 100)[:-5])}, "truncated"),
        ({"bits": 1, "lst": packed(zlib.compress(b"x") + b"more")}, "trailing data"),
    ],
)
def test_a_malformed_list_is_refused(claim: Any, reason: str) -> None:
    assert decode({"bits": 1, "lst": "eNrbuRgAAhcBXQ"})
    with pytest.raises(InvalidStatusList, match=reason):
        decode(claim)


@pytest.mark.threat("T-017")
def test_a_small_list_cannot_unpack_to_a_large_one() -> None:
    """A zlib bomb: a gibibyte of zeros is a mebibyte when it is packed."""
    largest = bytes(MAX_SIZE // 8)
    assert decode(encode(largest)) == largest
    with pytest.raises(InvalidStatusList, match="more than"):
        decode(encode(bytes(MAX_SIZE // 8 + 1)))
    bomb = zlib.compress(bytes(2**26), 9)
    with pytest.raises(InvalidStatusList, match="more than"):
        decode({"bits": 1, "lst": packed(bomb)})


@pytest.mark.threat("T-016")
@pytest.mark.parametrize(
    "uri",
    [
        "https://as.example.com.evil.example/status-lists/0123456789ab",
        "https://evil.example/status-lists/0123456789ab",
        "http://as.example.com/status-lists/0123456789ab",
        "https://as.example.com:8443/status-lists/0123456789ab",
        "https://as.example.com@evil.example/status-lists/0123456789ab",
        "https://as.example.com/status-lists/0123456789ab?x",
        "https://as.example.com/status-lists/../token",
        "https://as.example.com/status-lists/",
        "https://as.example.com/other/0123456789ab",
        "0123456789ab",
        "",
    ],
)
def test_a_list_must_be_below_the_issuers_origin(uri: str) -> None:
    assert parse_list_uri(ISSUER, list_uri(ISSUER, "0123456789ab")) == "0123456789ab"
    assert parse_list_uri(ISSUER, uri) is None
