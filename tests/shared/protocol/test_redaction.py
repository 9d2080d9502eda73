"""Masking of secrets in text that clients choose: it must find every secret in linear time."""

import pytest

from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.protocol.redaction import mask, quoted

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
