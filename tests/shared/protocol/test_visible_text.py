"""Visible text: which characters a stored name may have."""

import unicodedata

import pytest

from gatehouse.shared.protocol.visible_text import (
    JOINERS,
    check_display_name,
    escape_invisible,
    is_blank,
    is_visible,
)


@pytest.mark.parametrize("text", ["", "CI agent 2 (blue)", "Zoë", "e\u0301", "北京", "עברית", "हिन्दी", "🚀 one"])
def test_text_of_any_script_is_visible(text: str) -> None:
    assert is_visible(text)


@pytest.mark.parametrize(
    "character",
    [
        *("\0", "\x1b", "\n", "\x7f", "\x85", "\u2028", "\ud800"),
        *("\xad", "\u061c", "\u200b", "\u200d", "\u202e", "\u2060", "\ufeff", "\U000e0041"),
        *("\ufe00", "\ufe0f", "\U000e0100", "\U000e01ef", "\u180b", "\u180f", "\u034f"),
        *("\u115f", "\u1160", "\u3164", "\uffa0", "\u2800", "\u17b4", "\U0001d159"),
        *("\u2d7f", "\ufffc", "\U0001107f", "\U00013441", "\U00013442", "\U00016fe4"),
        *("\u0378", "\u2065", "\ufff0", "\uffff", "\U000e0fff", "\U0010ffff", "\ue000"),
        *("\xa0", "\u3000"),
    ],
    ids=ascii,
)
def test_a_character_that_nobody_sees_is_not_visible(character: str) -> None:
    for text in (character, f"agent{character}", f"{character}1"):
        assert not is_visible(text)


def test_further_characters_can_be_accepted() -> None:
    assert is_visible("\u0645\u06cc\u200c\u062e", also=JOINERS)
    assert not is_visible("\u0645\u06cc\u200c\u062e")
    assert is_visible("山田\u3000太郎", also="\u3000")
    assert not is_visible("a\ufe0f", also="\ufe0f")


def test_no_unassigned_character_is_visible() -> None:
    every = map(chr, range(0x110000))
    assert not [one for one in every if unicodedata.category(one) in {"Cn", "Cc", "Cf", "Co", "Cs"} and is_visible(one)]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Zoë 🚀 (1)", "Zoë 🚀 (1)"),
        ("a\nb\tc\x1b[2K", "a\\nb\\tc\\x1b[2K"),
        ("a\u202eb\u2028\ufe01", "a\\u202eb\\u2028\\ufe01"),
        ("\U000e0041\ud800", "\\U000e0041\\ud800"),
    ],
    ids=ascii,
)
def test_a_character_that_nobody_sees_is_shown_as_an_escape(text: str, shown: str) -> None:
    assert escape_invisible(text) == shown
    assert is_visible(shown)


def test_a_name_of_spaces_and_joiners_is_blank() -> None:
    for text in ("", " ", " \u3000\xa0", "\u200d", " \u200c "):
        assert is_blank(text)
    for text in ("a", " a", "\u200dی"):
        assert not is_blank(text)


def test_a_display_name_is_visible_and_limited_in_length() -> None:
    check_display_name("client", "Build agent", 11)
    for name in ("", " ", "a\u200b", "Build agents"):
        with pytest.raises(ValueError, match="A client name must have 1 to 11 visible characters"):
            check_display_name("client", name, 11)
