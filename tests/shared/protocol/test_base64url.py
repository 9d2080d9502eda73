"""base64url without padding: each byte string has one encoding."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol import base64url


def test_encoded_bytes_use_the_url_alphabet_without_padding() -> None:
    """RFC 4648 5."""
    assert base64url.encode(b"\xfb\xff\xfe\x01") == "-__-AQ"
    assert base64url.decode("-__-AQ") == b"\xfb\xff\xfe\x01"


@given(st.binary(max_size=64))
def test_decoding_returns_what_was_encoded(data: bytes) -> None:
    assert base64url.decode(base64url.encode(data)) == data


@pytest.mark.parametrize("text", ["A", "AAAAA", "A!", "AA\n", " AA", "\N{LATIN SMALL LETTER E WITH ACUTE}A"])
def test_text_outside_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(base64url.InvalidBase64url, match=r"^not base64url$"):
        base64url.decode(text)


@pytest.mark.parametrize("text", ["AQ=", "AQ==", "AR", "AQJ", "+/+/", "-__-A+"])
def test_a_noncanonical_encoding_is_refused(text: str) -> None:
    with pytest.raises(base64url.InvalidBase64url, match=r"^not canonical base64url$"):
        base64url.decode(text)
