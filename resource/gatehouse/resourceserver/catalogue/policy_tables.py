"""The tables of a policy file as they are written: their keys, and what each value must be.

The description of a field completes "must be" in the messages about it.
"""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Annotated, ClassVar, Final, Self

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import ErrorDetails

from gatehouse.resourceserver.catalogue import policy_values as values
from gatehouse.shared.service.setting_values import RateText
from gatehouse.shared.service.toml_document import KeyPath

_KIB: Final = 1024
_MIB: Final = 1024 * 1024

_FILE: Final = "the name of a file, absolute or relative to the folder of the policy file"


class Table(BaseModel):
    """A table of the file. Unknown keys are refused, and no value is converted."""

    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True, allow_inf_nan=False)

    refused: ClassVar[Mapping[str, str]] = {}
    """Why a key that a table of another kind has cannot be in this one, by its name."""


def _kind(table: type[Table]) -> Tag:
    return Tag(f"({table.__name__})")


def _chosen(by_key: Mapping[str, type[Table]], otherwise: type[Table]) -> Discriminator:
    """Choose the kind of a table by the first of the keys that it has, so that all its problems are of one kind."""

    def choose(content: object) -> str:
        keys = content if isinstance(content, Mapping) else ()
        return _kind(next((table for key, table in by_key.items() if key in keys), otherwise)).tag

    return Discriminator(choose)


class HeaderTable(Table):
    """`[upstream.credential]` with `header`."""

    refused = dict.fromkeys(("client_id", "resource"), "is only for a credential with issuer; remove it")

    header: values.Header = Field(
        description="the name of a header, such as X-Api-Key; for client credentials, write issuer instead"
    )
    file: values.FileName = Field(description=_FILE)


class ClientTable(Table):
    """`[upstream.credential]` with `issuer`."""

    refused = {"header": "a credential has either header or issuer; remove one of them"}

    issuer: values.Issuer = Field(description="the URL of an authorization server, such as https://auth.example.com")
    file: values.FileName = Field(description=_FILE)
    client_id: values.ClientId | None = Field(None, description="a string of 1 to 256 printable ASCII characters")
    resource: values.ResourceIdentifier | None = Field(
        None, description="the resource identifier of the upstream, such as https://tools.example.com/mcp"
    )


Credential = Annotated[
    Annotated[ClientTable, _kind(ClientTable)] | Annotated[HeaderTable, _kind(HeaderTable)],
    _chosen({"issuer": ClientTable}, HeaderTable),
]


class UpstreamTable(Table):
    """The keys of `[upstream]` for both transports."""

    timeout: float = Field(60, ge=1, le=3600, description="a number of seconds from 1 to 3600")
    max_result: int = Field(
        4 * _MIB, ge=_KIB, le=64 * _MIB, description=f"a whole number of bytes from {_KIB} to {64 * _MIB}"
    )
    max_sessions: int = Field(100, ge=1, le=10_000, description="a whole number from 1 to 10000")
    idle_timeout: float = Field(600, ge=1, le=86_400, description="a number of seconds from 1 to 86400")
    caller_identity: bool = Field(False, description="true or false")


class HttpTable(UpstreamTable):
    """`[upstream]` with `url`."""

    refused = {
        "command": "an upstream has either url or command; remove one of them",
        **dict.fromkeys(
            ("environment", "directory", "user", "shared"), "is only for an upstream with command; remove it"
        ),
    }

    url: values.UpstreamUrl = Field(
        description="an https URL, or http on this machine, such as http://127.0.0.1:3001/mcp; for a program, write "
        "command instead"
    )
    ca_file: values.FileName | None = Field(None, description=_FILE)
    credential: Credential | None = Field(None, description="the table [upstream.credential]")


class ProgramTable(UpstreamTable):
    """`[upstream]` with `command`."""

    refused = dict.fromkeys(("ca_file", "credential"), "is only for an upstream with url; remove it")

    command: values.Command = Field(description="a list of strings: the program and its arguments")
    environment: list[values.Variable] = Field(
        [], max_length=1000, description='a list of names of variables, such as ["HOME"]'
    )
    directory: values.FileName | None = Field(
        None, description="the name of a folder, absolute or relative to the folder of the policy file"
    )
    user: values.UserName | None = Field(None, description="the name of a user of this machine")
    shared: bool = Field(False, description="true or false")


Upstream = Annotated[
    Annotated[HttpTable, _kind(HttpTable)] | Annotated[ProgramTable, _kind(ProgramTable)],
    _chosen({"url": HttpTable, "command": ProgramTable}, HttpTable),
]


class ScopeTable(Table):
    """`[scopes.NAME]`."""

    description: values.Description = Field("", description="a string")
    implies: list[values.DeclaredScope] = Field([], description='a list of declared scopes, such as ["notes:read"]')


class ClaimTable(Table):
    """`[tools.NAME.arguments.NAME]` with `claim`."""

    refused = dict.fromkeys(
        ("enum", "pattern", "max_length", "minimum", "maximum", "required"),
        "has no effect beside claim, which decides the value; remove it",
    )

    claim: values.ClaimName = Field(description="the name of a claim of the caller, such as workspace_id")


class RuleTable(Table):
    """`[tools.NAME.arguments.NAME]` without `claim`."""

    enum: list[values.Scalar] | None = Field(
        None, min_length=1, max_length=100, description="a list of 1 to 100 strings, numbers or booleans"
    )
    pattern: values.Pattern | None = Field(None, description="a regular expression of at most 1000 characters")
    max_length: int | None = Field(None, ge=0, le=_MIB, description=f"a whole number from 0 to {_MIB}")
    minimum: values.Number | None = Field(None, description="a number")
    maximum: values.Number | None = Field(None, description="a number")
    required: bool = Field(False, description="true or false")

    @model_validator(mode="after")
    def _check_parts(self) -> Self:
        texts = self.pattern is not None or self.max_length is not None
        numbers = self.minimum is not None or self.maximum is not None
        if self.enum is None and not (texts or numbers or self.required):
            raise ValueError("a rule needs a key: enum, pattern, max_length, minimum, maximum, required or claim")
        if texts and numbers:
            raise ValueError("no value is both a string (pattern, max_length) and a number (minimum, maximum)")
        if self.minimum is not None and self.maximum is not None and self.minimum > self.maximum:
            raise ValueError("minimum is greater than maximum")
        return self


Rule = Annotated[
    Annotated[ClaimTable, _kind(ClaimTable)] | Annotated[RuleTable, _kind(RuleTable)],
    _chosen({"claim": ClaimTable}, RuleTable),
]


class CallableToolTable(Table):
    """The keys of `[tools.NAME]` for every tool that callers may call."""

    digest: values.Digest | None = Field(
        None,
        description="sha256: and 64 hexadecimal digits in lower case; resourceserver policy confirm writes it",
    )
    limit: RateText | None = Field(None, description="a string such as 30/minute, or off")
    arguments: dict[str, Rule] = Field({}, description="tables such as [tools.add_note.arguments.text]")


class ScopedToolTable(CallableToolTable):
    """`[tools.NAME]` with `scopes`."""

    scopes: list[values.DeclaredScope] = Field(
        min_length=1,
        description='a list of declared scopes, such as ["notes:read"]; or write any_valid_token = true for every '
        "client, or deny = true for none",
    )


class OpenToolTable(CallableToolTable):
    """`[tools.NAME]` with `any_valid_token`."""

    refused = {"scopes": "a tool has either scopes or any_valid_token; remove one of them"}

    any_valid_token: values.Always = Field(description="true")


class DeniedToolTable(Table):
    """`[tools.NAME]` with `deny`."""

    refused = dict.fromkeys(
        ("scopes", "any_valid_token", "digest", "limit", "arguments"), "has no effect beside deny; remove one of them"
    )

    deny: values.Always = Field(description="true")


Tool = Annotated[
    Annotated[DeniedToolTable, _kind(DeniedToolTable)]
    | Annotated[OpenToolTable, _kind(OpenToolTable)]
    | Annotated[ScopedToolTable, _kind(ScopedToolTable)],
    _chosen({"deny": DeniedToolTable, "any_valid_token": OpenToolTable}, ScopedToolTable),
]


class PolicyTable(Table):
    """The whole file."""

    resource: values.ResourceIdentifier | None = Field(
        None, description="the resource identifier of this server, such as https://tools.example.com/mcp"
    )
    name: values.ServerName | None = Field(None, description="a string")
    instructions: str | None = Field(
        None, max_length=16 * _KIB, description=f"a string of at most {16 * _KIB} characters"
    )
    upstream: Upstream = Field(description="the table [upstream], with url or command")
    scopes: dict[values.ScopeName, ScopeTable] = Field(
        min_length=1,
        description='tables such as [scopes."notes:read"], at least one: no token is issued without a scope',
    )
    tools: dict[values.ToolName, Tool] = Field({}, description="tables such as [tools.add_note]")


_FAMILIES: Final[tuple[tuple[type[Table], ...], ...]] = (
    (HttpTable, ProgramTable),
    (HeaderTable, ClientTable),
    (ScopedToolTable, OpenToolTable, DeniedToolTable),
    (RuleTable, ClaimTable),
)
"""The kinds that a table can be of."""

_KINDS: Final[Mapping[str | int, type[Table]]] = {_kind(table).tag: table for kinds in _FAMILIES for table in kinds}


def explain(problem: ErrorDetails) -> tuple[KeyPath, str]:
    """Return the path of the key that a problem of a PolicyTable is about, and what to do about it."""
    table: type[Table] = PolicyTable
    path: list[str] = []
    outer = 0
    for step in problem["loc"]:
        if step in _KINDS:
            table, outer = _KINDS[step], len(path)
        elif isinstance(step, str) and step != "[key]":
            path.append(step)
        if len(path) == 2 and path[0] == "scopes":
            table, outer = ScopeTable, 2
    return tuple(path), _remedy(table, path[outer] if len(path) > outer else None, problem)


def _remedy(table: type[Table], key: str | None, problem: ErrorDetails) -> str:
    """Say what to do about a problem of a table, or of one of its keys."""
    if problem["type"] == "value_error":
        return problem["msg"].removeprefix("Value error, ")
    if key is None:
        return "must be a table"
    if problem["type"] == "extra_forbidden":
        return table.refused.get(key) or f"there is no such key; {_alike(key, table)}"
    what = f"must be {table.model_fields[key].description}"
    return f"is missing; it {what}" if problem["type"] == "missing" else what


def _alike(key: str, table: type[Table]) -> str:
    # A misspelt key may be the one that would have chosen another kind.
    kinds = next((kinds for kinds in _FAMILIES if table in kinds), (table,))
    if alike := get_close_matches(key, [name for kind in kinds for name in kind.model_fields], 1, cutoff=0.7):
        return f"did you mean {alike[0]}?"
    return f"use one of: {', '.join(table.model_fields)}"
