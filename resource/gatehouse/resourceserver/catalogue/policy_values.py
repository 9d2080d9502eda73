"""The values of a policy file: the types of its keys, each with its check."""

import math
import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo

from gatehouse.resourceserver.catalogue.argument_rules import CALLER_CLAIMS, compile_pattern
from gatehouse.resourceserver.catalogue.catalogue import TOOL_NAME
from gatehouse.shared.protocol.claims import check_static_claim_name
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_protected_transport,
    parse_resource_identifier,
)
from gatehouse.shared.protocol.scopes import parse_scope_token
from gatehouse.shared.protocol.visible_text import check_display_name, is_visible
from gatehouse.shared.service.setting_values import check_public_url

MAX_DESCRIPTION: Final = 512
"""Characters of a scope's description. The authorization server accepts no more."""

_MAX_NAME: Final = 128

_OWN_VARIABLES: Final = ("AUTHSERVER_", "RESOURCESERVER_", "BRIDGE_")
"""How the names of Gatehouse's own settings begin, some of which are secrets."""

_RESERVED_HEADERS: Final = re.compile(
    # Of the request itself and of MCP, of the caller's identity, and hop-by-hop (RFC 9110 7.6.1).
    r"host|accept|accept-encoding|expect|last-event-id|content-.*|mcp-.*|gatehouse-.*"
    r"|connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade"
)

_QUERY: Final = re.compile(r"[A-Za-z0-9\-._~!$&'()*+,;=:@/?%]{0,1024}", re.ASCII)


def _check_resource(value: str) -> str:
    resource = parse_resource_identifier(value)
    if not is_protected_transport(resource):
        raise ValueError("must use https; plain http is for loopback addresses only")
    return resource


def _check_upstream_url(value: str) -> str:
    address, _, query = value.partition("?")
    try:
        protected = is_protected_transport(parse_resource_identifier(address))
    except InvalidResourceIdentifier:
        raise ValueError("must be https://HOST/PATH, without user information and without a fragment") from None
    if not protected:
        raise ValueError("must use https; plain http is for loopback addresses only, because calls contain credentials")
    if _QUERY.fullmatch(query) is None:
        raise ValueError("must have at most 1024 characters after its question mark, and only those of a URL")
    return value


def _check_header(value: str) -> str:
    if _RESERVED_HEADERS.fullmatch(value.lower()):
        raise ValueError(f"must not be {value}: the gateway sets this header itself, or a connection does")
    return value


def _check_command(value: list[str]) -> list[str]:
    if not value[0]:
        raise ValueError("must begin with the name of a program")
    return value


def _check_variable(value: str) -> str:
    if value.upper().startswith(_OWN_VARIABLES):
        raise ValueError(f"must not contain {quoted(value)}: the settings of Gatehouse may be secrets")
    return value


def _check_declared(value: str, info: ValidationInfo) -> str:
    declared: Collection[str] = info.context or ()
    if value not in declared:
        alike = get_close_matches(value, declared, 1)
        remedy = f"did you mean {quoted(alike[0])}?" if alike else f'declare it: [scopes."{quoted(value)}"]'
        raise ValueError(f"the scope {quoted(value)} is not declared; {remedy}")
    return value


def _check_name(value: str) -> str:
    check_display_name("server", value, _MAX_NAME)
    return value


def _check_tool_name(value: str) -> str:
    if TOOL_NAME.fullmatch(value) is None:
        raise ValueError("the name of a tool has 1 to 128 of the characters A-Z a-z 0-9 _ . -")
    return value


def _check_description(value: str) -> str:
    if len(value) > MAX_DESCRIPTION or not is_visible(value):
        raise ValueError(f"must be at most {MAX_DESCRIPTION} visible characters, on one line")
    return value


def _check_pattern(value: str) -> str:
    compile_pattern(value)
    return value


def _check_claim(value: str) -> str:
    if value not in CALLER_CLAIMS:
        check_static_claim_name(value)
    return value


def _is_finite(value: object) -> bool:
    """Tell whether a value is no float that JSON does not have: NaN or an infinity."""
    return not isinstance(value, float) or math.isfinite(value)


def _check_scalar(value: Any) -> str | int | float | bool:
    # TOML also has arrays, tables, dates and times.
    if not isinstance(value, str | int | float) or not _is_finite(value):
        raise ValueError("must contain only strings, finite numbers, true and false")
    return value


def _check_number(value: Any) -> int | float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not _is_finite(value):
        raise ValueError("must be a finite number")
    return value


def _require_true(value: bool) -> bool:
    if not value:
        raise ValueError("must be true; remove the key if it does not apply")
    return value


Always = Annotated[bool, AfterValidator(_require_true)]
"""A key that is true or absent."""

Text = Annotated[str, Field(max_length=4096, pattern=r"\A[^\x00]*\z")]
"""An argument of a program."""

FileName = Annotated[Text, Field(min_length=1)]

Command = Annotated[list[Text], Field(min_length=1, max_length=1000), AfterValidator(_check_command)]

Variable = Annotated[str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_]*\z"), AfterValidator(_check_variable)]

UserName = Annotated[str, Field(pattern=r"\A[A-Za-z_][A-Za-z0-9_.-]{0,31}\z")]

Header = Annotated[str, Field(pattern=r"\A[!#$%&'*+.^_`|~0-9A-Za-z-]{1,64}\z"), AfterValidator(_check_header)]
"""The name of a header field (RFC 9110 5.1)."""

ClientId = Annotated[str, Field(pattern=r"\A[\x20-\x7e]{1,256}\z")]

UpstreamUrl = Annotated[str, AfterValidator(_check_upstream_url)]

ResourceIdentifier = Annotated[str, AfterValidator(_check_resource)]
"""It becomes canonical."""

Issuer = Annotated[str, AfterValidator(check_public_url)]

ServerName = Annotated[str, AfterValidator(_check_name)]

ScopeName = Annotated[str, AfterValidator(parse_scope_token)]

DeclaredScope = Annotated[str, AfterValidator(_check_declared)]
"""A scope that the file declares. The names of all of them are the context of the validation."""

Description = Annotated[str, AfterValidator(_check_description)]

ToolName = Annotated[str, AfterValidator(_check_tool_name)]

Digest = Annotated[str, Field(pattern=r"\Asha256:[0-9a-f]{64}\z")]

Scalar = Annotated[str | int | float | bool, PlainValidator(_check_scalar)]

Number = Annotated[int | float, PlainValidator(_check_number)]

Pattern = Annotated[str, Field(max_length=1000), AfterValidator(_check_pattern)]

ClaimName = Annotated[str, AfterValidator(_check_claim)]
