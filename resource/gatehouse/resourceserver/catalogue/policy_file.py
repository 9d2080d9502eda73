"""The policy file of an upstream: which server stands behind the gateway, and who may call which of its tools.

It is TOML. What it does not allow is denied. The same file is the catalogue for `authserver resource add --catalogue`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gatehouse.resourceserver.catalogue.argument_rules import ArgumentRule
from gatehouse.resourceserver.catalogue.declaration import Scope
from gatehouse.shared.service.rates import Rate


class InvalidPolicy(Exception):
    """A policy file cannot be used. The text names every problem with its line and how to fix it."""


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
    """Sessions of callers at once, in all workers of a node."""
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


def parse_policy(text: str) -> PolicyFile:
    """Read a policy file.

    Raises:
        InvalidPolicy: with every problem of the file, not only the first.
    """
    raise NotImplementedError
