"""Masking of secrets in text that clients choose: it must find every secret in linear time."""

import re
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.redaction import as_word, mask, quoted

TOKEN = SigningKey.generate("ES256").sign("at+jwt", {"sub": "agent_1"})
SECRET = "gths_" + "aB3-_" * 8


@pytest.mark.threat("T-047")
def test_repeated_prefixes_are_scanned_in_linear_time() -> None:
    """CWE-1333, CWE-407: scanning again from each prefix would take minutes for a mebibyte of headers."""
    assert mask(f"a {TOKEN}") == "a [masked]"
    beginnings = "eyJ" * (1024 * 1024 // 3)
    assert mask(beginnings) == beginnings
    assert quoted(beginnings) == beginnings[:100]
    assert mask("bearer" + " " * 1024 * 1024).startswith("bearer ")


@pytest.mark.threat("T-047")
@pytest.mark.parametrize("before", ["eyJ", "eyJeyJ", "x", "eyJ-", "eyJ."])
@pytest.mark.parametrize("secret", [TOKEN, SECRET, "bearer " + "a" * 16])
def test_text_before_a_secret_does_not_hide_it(before: str, secret: str) -> None:
    """CWE-532: text that looks like the start of a token must not hide the secret after it."""
    masked = mask(before + secret)
    assert "[masked]" in masked
    assert secret not in masked
    assert secret[-12:] not in masked


_PARTS = st.sampled_from(
    [
        *("eyJ", "gths_", "gtrs_", "gths", "gt", "_", ".", "a.b", "a" * 16, "=", "/", "-", '"', "x"),
        *("basic", "Bearer", "BASIC", "ba\u017fic", "bas\u0131c", "bearer"),
        *(" ", "\t", "\n", "\x1c", "\x85", "\xa0", "\u2003", "\u2028", "\u3000"),
    ]
)


@pytest.mark.threat("T-047")
@given(st.lists(_PARTS | st.text(max_size=3), max_size=12).map("".join))
def test_skipped_searches_would_have_found_nothing(text: str) -> None:
    """CWE-532: `mask` compared with both regular expressions, applied to every text."""
    found = re.sub(r"eyJ[A-Za-z0-9_-]+(\.[A-Za-z0-9_.-]+)?", lambda match: "[masked]" if match[1] else match[0], text)
    secret = r"gt[hr]s_[A-Za-z0-9_-]+|(?i:basic|bearer)\s+[A-Za-z0-9+/=._~-]{16,}"
    assert mask(text) == re.sub(secret, "[masked]", found)


def test_every_whitespace_character_may_separate_the_parts_of_a_header() -> None:
    for separator in filter(re.compile(r"\s").match, map(chr, range(sys.maxunicode + 1))):
        assert mask(f"bearer{separator}{'a' * 16}") == "[masked]"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        *(("main", "main"), ("a b", '"a b"'), (" a", '" a"'), ("a ", '"a "'), ("", '""')),
        *(('a" b="c', r'"a\x22 b=\x22c"'), ('"a', r'"\x22a"'), (r"a\" b", r'"a\\x22 b"')),
    ],
)
def test_a_text_that_would_not_show_where_it_ends_is_in_quotation_marks(text: str, shown: str) -> None:
    assert as_word(text) == shown
