"""Attacks on the rules for the arguments of an upstream's tool: another tenant under another name, type or spelling."""

from pathlib import Path
from typing import Any

import pytest

from gatehouse.resourceserver.catalogue.argument_rules import ArgumentsRefused, apply_rules, unknown_arguments
from gatehouse.resourceserver.catalogue.policy_file import parse_policy
from gatehouse.shared.protocol.claims import AccessClaims
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json

POLICY = parse_policy(
    """
[upstream]
url = "http://127.0.0.1:3001/mcp"
[scopes."notes:write"]
[tools.add_note]
scopes = ["notes:write"]
[tools.add_note.arguments]
tenant = { claim = "workspace_id" }
kind = { enum = ["memo", 1] }
code = { pattern = "[a-z]{2}[0-9]{2}" }
text = { max_length = 5 }
count = { minimum = 0, maximum = 10 }
""",
    Path("/"),
)
RULES = POLICY.tools["add_note"].arguments
NAMES = ("tenant", "kind", "code", "text", "count", "options")
SCHEMA = {"type": "object", "properties": {name: {} for name in NAMES}, "additionalProperties": True}
CLAIMS = AccessClaims(
    "https://auth.example.com", "a", "a", "https://r.example", 0, 300, "j", frozenset(), {"workspace_id": "wks_1"}
)
FAULTLESS = b'{"tenant": "wks_1", "kind": "memo", "code": "ab12", "text": "hello", "count": 7, "options": {}}'


def sent_to_upstream(document: bytes) -> Any:
    """Return the arguments that the upstream would receive for those of a request."""
    return apply_rules(RULES, SCHEMA, parse_json(document), CLAIMS)


def refuses(document: bytes) -> str:
    """Send the faultless arguments, then those of the attack. Return the text of the refusal."""
    assert sent_to_upstream(FAULTLESS) == parse_json(FAULTLESS)
    assert document != FAULTLESS
    with pytest.raises(ArgumentsRefused) as refused:
        sent_to_upstream(document)
    return str(refused.value)


@pytest.mark.threat("T-176")
@pytest.mark.parametrize(
    "tenant",
    [
        pytest.param('"wks_2"', id="another tenant"),
        pytest.param('"WKS_1"', id="case"),
        pytest.param('"wks_1 "', id="space"),
        pytest.param('"wks_1\\u0000"', id="NUL"),
        pytest.param('"wks_\uff11"', id="full-width digit"),
        pytest.param('"w\\u200bks_1"', id="zero-width space"),
        pytest.param('"wks_1\\u0301"', id="combining accent"),
        pytest.param('["wks_1"]', id="list"),
        pytest.param('{"tenant": "wks_1"}', id="object"),
        pytest.param("null", id="null"),
        pytest.param('""', id="empty"),
    ],
)
def test_a_caller_cannot_name_another_tenant(tenant: str) -> None:
    text = refuses(FAULTLESS.replace(b'"wks_1"', tenant.encode()))
    assert "tenant: must equal the claim workspace_id of your token" in text
    assert "wks_" not in text


@pytest.mark.threat("T-176")
@pytest.mark.parametrize(
    "alias",
    ["Tenant", "tenant_id", "tenantId", "tenant ", "\uff54enant", "t\u0435nant", "ten\u200dant", "", "__proto__"],
)
def test_an_alias_of_a_protected_argument_is_refused(alias: str) -> None:
    """The schema allows additional properties, and the upstream may read one of them as the tenant."""
    text = refuses(FAULTLESS.replace(b'"options": {}', f'"{alias}": "wks_2"'.encode()))
    assert "unknown argument; the arguments are: tenant, kind, code, text, count, options" in text


@pytest.mark.threat("T-176")
@pytest.mark.parametrize(
    ("member", "repeated"),
    [
        pytest.param(b'"tenant": ', b'"tenant": "wks_2", "tenant": ', id="first"),
        pytest.param(b'"kind"', b'"tenant": "wks_2", "kind"', id="second"),
        pytest.param(b'"kind"', b'"t\\u0065nant": "wks_2", "kind"', id="escaped"),
        pytest.param(b'"options": {}', b'"options": {"a": 1, "a": 2}', id="nested"),
        pytest.param(b'"options": {}', b'"options": [{"a": {"b": 1, "b": 2}}]', id="deep"),
    ],
)
def test_duplicate_members_never_reach_the_rules(member: bytes, repeated: bytes) -> None:
    """RFC 8259 4: the upstream's parser may use another one of the two than the rules saw."""
    assert sent_to_upstream(FAULTLESS)
    document = FAULTLESS.replace(member, repeated, 1)
    assert document != FAULTLESS
    with pytest.raises(InvalidJson):
        sent_to_upstream(document)


@pytest.mark.threat("T-177")
@pytest.mark.parametrize(
    ("before", "after", "argument"),
    [
        pytest.param('"memo"', '"MEMO"', "kind", id="enum: case"),
        pytest.param('"memo"', '"\uff4demo"', "kind", id="enum: full-width"),
        pytest.param('"memo"', '"mem\u03bf"', "kind", id="enum: Greek letter"),
        pytest.param('"memo"', '"memo\\u0301"', "kind", id="enum: combining"),
        pytest.param('"memo"', '"1"', "kind", id="enum: number as a string"),
        pytest.param('"memo"', "1.0", "kind", id="enum: float"),
        pytest.param('"memo"', "true", "kind", id="enum: true for 1"),
        pytest.param('"ab12"', '"ab\uff11\uff12"', "code", id="pattern: full-width"),
        pytest.param('"ab12"', '"ab\u0661\u0662"', "code", id="pattern: Arabic digits"),
        pytest.param('"ab12"', '"ab12\\n"', "code", id="pattern: line feed"),
        pytest.param('"ab12"', '"x\\nab12"', "code", id="pattern: second line"),
        pytest.param('"ab12"', '["ab12"]', "code", id="pattern: list"),
        pytest.param('"hello"', '"hello!"', "text", id="length"),
        pytest.param('"hello"', '"hell\\u006f\\u0301"', "text", id="length: combining"),
        pytest.param('"hello"', '["h"]', "text", id="length: list"),
        pytest.param("7", '"7"', "count", id="range: number as a string"),
        pytest.param("7", "10.000001", "count", id="range: fraction"),
        pytest.param("7", "1e300", "count", id="range: exponent"),
        pytest.param("7", "-1", "count", id="range: negative"),
        pytest.param("7", "true", "count", id="range: true"),
        pytest.param("7", "[7]", "count", id="range: list"),
        pytest.param("7", "null", "count", id="range: null"),
    ],
)
def test_a_variant_of_an_allowed_value_is_refused(before: str, after: str, argument: str) -> None:
    text = refuses(FAULTLESS.decode().replace(before, after).encode())
    assert f"{argument}: must be " in text


@pytest.mark.threat("T-178")
def test_a_rule_does_not_outlive_its_argument() -> None:
    """An upstream that renames an argument would otherwise receive it unchecked."""
    renamed = {"properties": {name.replace("tenant", "workspace"): {} for name in NAMES}}
    assert unknown_arguments(RULES, SCHEMA) == []
    assert unknown_arguments(RULES, renamed) == ["tenant"]
    assert unknown_arguments(RULES, {"allOf": [SCHEMA]}) == sorted(RULES)
