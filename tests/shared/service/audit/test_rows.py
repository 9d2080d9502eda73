"""The rows of audit events: their detail is JSON, cleaned and encoded in one pass."""

import json
import tracemalloc
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.audit import audit_keys

from gatehouse.shared.protocol.redaction import mask, printable
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent, AuditTables
from gatehouse.shared.service.audit.rows import AuditRows
from gatehouse.shared.service.database import new_metadata

ROWS = AuditRows(AuditTables.declare(new_metadata()).events, audit_keys)

TEXT = st.text(max_size=8) | st.sampled_from(
    ["gths_" + "a" * 20, "bearer " + "a" * 16, 'a"b\\c', "x\nforged", "\ud800"]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3))


def cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return printable(mask(value))
    if isinstance(value, dict):
        return {cleaned(name): cleaned(item) for name, item in value.items()}
    return [cleaned(item) for item in value] if isinstance(value, list) else value


def detail_of(detail: Mapping[str, Any]) -> str:
    return ROWS.row(AuditEvent(AuditAction.TOKEN_ISSUE, "allowed", detail=detail)).detail


@given(st.dictionaries(TEXT, VALUES, max_size=3))
def test_a_detail_is_encoded_as_its_cleaned_values_are(detail: dict[str, Any]) -> None:
    assert json.loads(detail_of(detail)) == cleaned(detail)


@pytest.mark.parametrize(
    ("detail", "text"),
    [
        ({}, "{}"),
        (MappingProxyType({"status": 401}), '{"status": 401}'),
        (
            {"changed": ("a", "b"), "more": MappingProxyType({"ok": True})},
            '{"changed": ["a", "b"], "more": {"ok": true}}',
        ),
    ],
    ids=["empty", "a mapping", "a tuple and a mapping"],
)
def test_every_kind_of_sequence_and_mapping_is_encoded(detail: Mapping[str, Any], text: str) -> None:
    assert detail_of(detail) == text


@pytest.mark.parametrize("value", [object(), b"bytes", {1, 2}, 1j], ids=["object", "bytes", "set", "complex"])
def test_a_value_that_json_does_not_have_is_refused(value: Any) -> None:
    with pytest.raises(TypeError):
        detail_of({"deep": [value]})


def test_names_that_are_masked_alike_appear_once() -> None:
    """An export reads the detail and writes it again, and its text must stay the same."""
    text = detail_of({"gths_" + "a" * 20: 1, "other": 2, "gths_" + "b" * 20: 3})
    assert text == json.dumps(json.loads(text)) == '{"[masked]": 3, "other": 2}'


def test_a_long_text_is_not_kept_in_memory() -> None:
    """A caller chooses the name of the tool that it calls, of up to a megabyte."""
    tracemalloc.start()
    try:
        for number in range(8):
            ROWS.row(AuditEvent(AuditAction.TOOL_CALL, "refused", object=f"{number}{'a' * 1_000_000}"))
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 1_000_000
