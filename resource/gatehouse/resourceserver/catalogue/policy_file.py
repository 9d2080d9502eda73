"""The policy file of an upstream: which server stands behind the gateway, and who may call which of its tools.

It is TOML. What it does not allow is denied. The same file is the catalogue for `authserver resource add --catalogue`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

from pydantic import ValidationError

from gatehouse.resourceserver.catalogue.argument_rules import ArgumentRule
from gatehouse.resourceserver.catalogue.declaration import Scope
from gatehouse.resourceserver.catalogue.policy_tables import (
    ClaimTable,
    ClientTable,
    DeniedToolTable,
    HeaderTable,
    HttpTable,
    OpenToolTable,
    PolicyTable,
    ProgramTable,
    RuleTable,
    ScopedToolTable,
    explain,
)
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.resource_identifiers import parse_resource_identifier
from gatehouse.shared.service.rates import Rate, parse_rate
from gatehouse.shared.service.toml_document import InvalidToml, TomlDocument, parse_toml

MAX_LENGTH: Final = 1024 * 1024
"""Bytes of a policy file."""

_BARE_KEY: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class InvalidPolicy(Exception):
    """A policy file cannot be used. The text has every problem, with its line and how to fix it, and not the path."""


@dataclass(frozen=True, slots=True)
class HeaderCredential:
    """A header with the content of a file, such as an API key."""

    header: str
    file: Path


@dataclass(frozen=True, slots=True)
class ClientCredential:
    """A client at another authorization server, which issues tokens for the upstream."""

    issuer: str
    file: Path
    """The credentials file: JSON with `client_id` and `client_secret`, or a private key (PEM)."""
    client_id: str | None
    """Needed with a private key."""
    resource: str
    """The resource identifier of the upstream (RFC 8707). Default: its URL."""


@dataclass(frozen=True, slots=True)
class HttpTransport:
    """An upstream that speaks Streamable HTTP."""

    url: str
    ca_file: Path | None
    """The certificates (PEM) of the authorities that its certificate may come from; None for those of the system."""
    credential: HeaderCredential | ClientCredential | None


@dataclass(frozen=True, slots=True)
class StdioTransport:
    """An upstream that is a program, and speaks MCP over its standard input and output."""

    command: tuple[str, ...]
    environment: tuple[str, ...]
    """Names of the variables that the program gets; PATH always."""
    directory: Path | None
    user: str | None
    """The user that the program runs as; None for the user of the server."""
    shared: bool
    """Whether all callers share one process, because the program keeps nothing of its callers."""


@dataclass(frozen=True, slots=True)
class UpstreamSettings:
    """How the upstream is reached, and the bounds of what it may do."""

    transport: HttpTransport | StdioTransport
    timeout: float
    """Seconds that a call may take without an answer or progress."""
    max_result: int
    """Bytes of an answer."""
    max_sessions: int
    """Sessions of callers at once: of a program in all workers of a node, of a server in all nodes of a database."""
    idle_timeout: float
    """Seconds after which an unused session ends."""
    caller_identity: bool
    """Whether the upstream is told who calls."""


@dataclass(frozen=True, slots=True)
class ToolPolicy:
    """What the policy says of a tool that callers may call."""

    name: str
    scopes: frozenset[str]
    """The caller needs all of them. Empty only for `any_valid_token = true`."""
    digest: str | None
    """Of the confirmed description of the tool (tool_digest.py). None until it is confirmed: the tool is refused."""
    arguments: Mapping[str, ArgumentRule]
    limit: Rate | None
    """How often one client may call it; None for the default of the settings."""


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """A valid policy file."""

    resource: str | None
    """The resource identifier that it is for; None for any."""
    name: str | None
    """The name of the server, for clients; None for a name made of the upstream's address."""
    instructions: str | None
    upstream: UpstreamSettings
    scopes: Mapping[str, Scope]
    tools: Mapping[str, ToolPolicy]
    denied: frozenset[str]
    """Tools with `deny = true`. They are refused as any other tool that is not in `tools`, and `policy check` does not
    report them as new."""


def parse_policy(text: str, folder: Path) -> PolicyFile:
    """Parse a policy file. Its relative paths are relative to `folder`, the folder that it is in.

    No file is read.

    Raises:
        InvalidPolicy: with every problem of the file, not only the first. A file that is not TOML has one problem.
    """
    check_length(len(text.encode()))
    try:
        document = parse_toml(text)
    except InvalidToml as error:
        raise InvalidPolicy(str(error)) from None
    scopes = document.content.get("scopes")
    try:
        table = PolicyTable.model_validate(document.content, context=scopes if isinstance(scopes, Mapping) else {})
    except ValidationError as error:
        raise InvalidPolicy(_describe(error, document)) from None
    tools = {name: _tool(name, tool) for name, tool in table.tools.items() if not isinstance(tool, DeniedToolTable)}
    return PolicyFile(
        resource=table.resource,
        name=table.name,
        instructions=table.instructions,
        upstream=_upstream(table.upstream, folder),
        scopes=MappingProxyType(
            {name: Scope(name, scope.description, tuple(scope.implies)) for name, scope in table.scopes.items()}
        ),
        tools=MappingProxyType(tools),
        denied=frozenset(table.tools.keys() - tools.keys()),
    )


def check_length(length: int) -> None:
    """Raise InvalidPolicy for a file of too many bytes."""
    if length > MAX_LENGTH:
        raise InvalidPolicy(f"the file is larger than {MAX_LENGTH // 1024} KiB; remove what it does not need")


def _describe(error: ValidationError, document: TomlDocument) -> str:
    """Return one line for each problem, in the order of the lines of the file."""
    problems = []
    for problem in error.errors(include_url=False, include_input=False, include_context=False):
        path, text = explain(problem)
        keys = (key if _BARE_KEY.fullmatch(key) else f'"{quoted(key)}"' for key in path)
        problems.append((document.line(path), f"{'.'.join(keys)}: {text}"))
    return "\n".join(f"line {line}: {text}" for line, text in dict.fromkeys(sorted(problems)))


def _upstream(table: HttpTable | ProgramTable, folder: Path) -> UpstreamSettings:
    return UpstreamSettings(
        transport=_server(table, folder) if isinstance(table, HttpTable) else _program(table, folder),
        timeout=table.timeout,
        max_result=table.max_result,
        max_sessions=table.max_sessions,
        idle_timeout=table.idle_timeout,
        caller_identity=table.caller_identity,
    )


def _server(table: HttpTable, folder: Path) -> HttpTransport:
    ca_file = folder / table.ca_file if table.ca_file is not None else None
    credential: HeaderCredential | ClientCredential | None = None
    match table.credential:
        case HeaderTable(header=header, file=file):
            credential = HeaderCredential(header, folder / file)
        case ClientTable(issuer=issuer, file=file, client_id=client_id, resource=resource):
            # A resource identifier should have no query (RFC 8707 2).
            resource = resource or parse_resource_identifier(table.url.partition("?")[0])
            credential = ClientCredential(issuer, folder / file, client_id, resource)
    return HttpTransport(table.url, ca_file, credential)


def _program(table: ProgramTable, folder: Path) -> StdioTransport:
    program, *arguments = table.command
    return StdioTransport(
        # As in a shell, a name without a slash is found in PATH.
        command=(str(folder / program) if "/" in program else program, *arguments),
        environment=tuple(table.environment),
        directory=folder / table.directory if table.directory is not None else None,
        user=table.user,
        shared=table.shared,
    )


def _tool(name: str, table: ScopedToolTable | OpenToolTable) -> ToolPolicy:
    return ToolPolicy(
        name=name,
        scopes=frozenset(table.scopes) if isinstance(table, ScopedToolTable) else frozenset(),
        digest=table.digest,
        arguments=MappingProxyType({argument: _rule(rule) for argument, rule in table.arguments.items()}),
        limit=parse_rate(table.limit) if table.limit is not None else None,
    )


def _rule(table: ClaimTable | RuleTable) -> ArgumentRule:
    if isinstance(table, ClaimTable):
        return ArgumentRule(claim=table.claim)
    return ArgumentRule(
        enum=tuple(table.enum) if table.enum is not None else None,
        pattern=table.pattern,
        max_length=table.max_length,
        minimum=table.minimum,
        maximum=table.maximum,
        required=table.required,
    )
