"""The scope grammar and the scope hierarchy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.scopes import (
    InvalidScopeSyntax,
    ScopeHierarchy,
    cut_scope,
    format_scope,
    parse_scope,
    parse_scope_token,
    separator_hint,
)

GRAMMAR = [chr(c) for c in (0x21, *range(0x23, 0x5C), *range(0x5D, 0x7F))]
TOKENS = st.text(st.sampled_from(GRAMMAR), min_size=1, max_size=128)
SMALL = st.frozensets(st.sampled_from("abcdef"))
HIERARCHIES = st.dictionaries(st.sampled_from("abcdef"), SMALL).map(ScopeHierarchy)


@given(st.frozensets(TOKENS, min_size=1))
def test_a_scope_set_survives_a_round_trip(scopes: frozenset[str]) -> None:
    assert parse_scope(format_scope(scopes)) == scopes


@given(st.text(max_size=20))
def test_a_text_is_read_exactly_if_its_tokens_match_the_grammar(text: str) -> None:
    """RFC 6749 3.3."""
    if all(token and set(token) <= set(GRAMMAR) for token in text.split(" ")):
        assert parse_scope(text) == frozenset(text.split(" "))
    else:
        with pytest.raises(InvalidScopeSyntax):
            parse_scope(text)


def test_order_and_repetition_have_no_meaning() -> None:
    assert parse_scope("b a b") == parse_scope("a b")
    assert format_scope(["b", "a"]) == format_scope({"a", "b"}) == "a b"


@pytest.mark.parametrize(
    "text",
    ["", " ", " a", "a ", "a  b", "a\tb", "a\nb", "a\n", 'a"b', "a\\b", "a\x00", "a\x7f", "é", "a\u2028b", "a" * 129],
    ids=repr,
)
def test_a_text_outside_the_grammar_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(InvalidScopeSyntax) as refusal:
        parse_scope(text)
    spaced = text and "" in text.split(" ")
    remediation = "Separate scopes by one space" if spaced else "A scope is 1 to 128 printable ASCII characters"
    assert str(refusal.value).startswith(remediation)


def test_a_message_is_truncated_between_two_scopes() -> None:
    assert cut_scope({"aa", "bb", "cc"}, 8) == "aa bb cc"
    assert cut_scope({"aa", "bb", "cc"}, 7) == cut_scope({"aa", "bb", "cc"}, 5) == "aa bb"
    assert cut_scope({"aa", "bb", "cc"}, 4) == "aa"


def test_a_scope_that_looks_like_several_gets_a_hint() -> None:
    """The grammar allows a comma and a semicolon within a scope."""
    assert parse_scope("a,b") == {"a,b"}
    assert separator_hint({"x", "a,b"}) == separator_hint({"a;b"}) == " Separate scopes by spaces."
    assert separator_hint({"a", "b"}) == ""


def test_a_token_has_at_most_128_characters_and_no_space() -> None:
    assert parse_scope_token("a" * 128) == "a" * 128
    with pytest.raises(InvalidScopeSyntax):
        parse_scope_token("a b")


def test_scopes_are_case_sensitive() -> None:
    assert parse_scope("Env:Read") != parse_scope("env:read")


def test_a_scope_implies_what_its_implied_scopes_imply() -> None:
    hierarchy = ScopeHierarchy({"admin": frozenset({"write"}), "write": frozenset({"read"})})
    assert hierarchy.closure({"admin"}) == {"admin", "write", "read"}
    assert hierarchy.closure({"read"}) == {"read"}
    assert hierarchy.minimal(frozenset({"admin", "read", "other"})) == {"admin", "other"}


def test_without_a_hierarchy_a_scope_implies_itself_only() -> None:
    scopes = frozenset({"env:write", "env:read"})
    assert ScopeHierarchy().closure(scopes) == ScopeHierarchy().minimal(scopes) == scopes


@given(HIERARCHIES, SMALL, SMALL)
def test_the_closure_is_monotonic_and_idempotent(
    hierarchy: ScopeHierarchy, scopes: frozenset[str], more: frozenset[str]
) -> None:
    closure = hierarchy.closure(scopes)
    assert scopes <= closure
    assert hierarchy.closure(closure) == closure
    assert closure <= hierarchy.closure(scopes | more)
    assert all(hierarchy.implies.get(scope, frozenset()) <= closure for scope in closure)


@given(HIERARCHIES, SMALL)
def test_the_minimal_set_implies_all_and_is_irreducible(hierarchy: ScopeHierarchy, scopes: frozenset[str]) -> None:
    minimal = hierarchy.minimal(scopes)
    assert minimal <= scopes
    assert hierarchy.closure(minimal) == hierarchy.closure(scopes)
    assert all(scope not in hierarchy.closure(minimal - {scope}) for scope in minimal)


@pytest.mark.parametrize(
    ("length", "cut"),
    [(7, "a:b c:d"), (6, "a:b"), (4, "a:b"), (3, "a:b"), (2, ""), (100, "a:b c:d")],
)
def test_a_truncated_list_ends_with_a_whole_scope(length: int, cut: str) -> None:
    """A truncated scope could be a valid scope, which a remediation would then grant."""
    assert cut_scope(["c:d", "a:b"], length) == cut
