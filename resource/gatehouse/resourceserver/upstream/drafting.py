"""Drafts the policy of an upstream from the tools that it lists. Each scope is a guess, marked for confirmation.

What the upstream wrote appears in comments only: one line, with escapes for everything that is not a visible character,
so that no parser of TOML and no editor sees the end of the comment in it (TOML 1.0, "Comment").
"""

import re
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import urlsplit

import tomlkit

from gatehouse.resourceserver.catalogue.catalogue import TOOL_NAME
from gatehouse.resourceserver.catalogue.policy_file import HttpTransport, StdioTransport
from gatehouse.resourceserver.upstream.drift import unusable_reason
from gatehouse.shared.protocol.visible_text import escape_invisible

TO_BE_CONFIRMED: Final = "# to be confirmed:"
"""The start of the comment behind a guess."""

_LEVELS: Final = {
    "read": "Call tools that only read",
    "write": "Call tools that change something",
    "admin": "Call tools that delete or overwrite something",
}
"""The scopes of a draft, each with its description. Each implies the one before it."""

_SUMMARY: Final = 100
"""Characters of a tool's name or description in a comment."""

_PREFIX: Final = 32
"""Characters of a name that scopes start with."""

_LAUNCHERS: Final = frozenset(
    {
        *("bun", "bunx", "deno", "node", "npm", "npx", "pnpm", "yarn"),
        *("pipx", "python", "python3", "uv", "uvx"),
        *("docker", "dotnet", "go", "java", "podman"),
        *("exec", "run", "tool"),
    }
)
"""Programs, and commands of these, that start another program."""

_HEAD: Final = """\
# The policy of an MCP server behind the gateway, drafted from the tools that the server lists.
#
# The scopes are guesses from the annotations of each tool: read for readOnlyHint, admin for destructiveHint, otherwise
# write. Annotations are claims of the server. By the MCP specification, a tool without annotations may be destructive;
# most servers annotate nothing, so the guess for such a tool is write, and admin needs an explicit destructiveHint.
#
# Check each line that is to be confirmed. Set `deny = true` instead of scopes for a tool that nobody may call. Then run
# `resourceserver policy confirm TOOL` or `resourceserver policy confirm --all`. Until then, no tool can be called.
"""


def draft_policy(section: str, prefix: str, tools: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the text of a policy file that allows nothing until its tools are confirmed.

    Args:
        section: the table [upstream], as `upstream_section` returns it.
        prefix: the start of the scopes.
        tools: the tools as the upstream lists them, by name.
    """
    reasons = {name: unusable_reason(tool) for name, tool in tools.items() if TOOL_NAME.fullmatch(name)}
    # A policy declares at least one scope.
    levels = {guess(tools[name])[0] for name, reason in reasons.items() if reason is None} or {"read"}
    tables = [
        tool_table(tools[name], prefix) if reason is None else _denied_table(tools[name], reason)
        for name, reason in reasons.items()
    ]
    text = "\n".join([_HEAD, section, scope_tables(prefix, levels), *tables])
    unnamed = [f"#   {_shown(name)}\n" for name in tools if name not in reasons]
    return "".join([text, "\n# Denied, because MCP does not allow such names:\n", *unnamed]) if unnamed else text


def upstream_section(members: Mapping[str, Any]) -> str:
    """Return the table [upstream] with these members. A member that is a mapping is a table of its own."""
    return tomlkit.dumps({"upstream": members})


def scope_tables(prefix: str, levels: set[str]) -> str:
    """Return the declarations of the scopes of these levels: `read`, `write`, `admin`."""
    used = [level for level in _LEVELS if level in levels]
    tables = []
    for lower, level in zip([None, *used], used, strict=False):
        implies = "" if lower is None else f"implies = {_value([f'{prefix}:{lower}'])}\n"
        tables.append(
            f"[scopes.{toml_key(f'{prefix}:{level}')}]  {TO_BE_CONFIRMED} named after the server\n"
            f"description = {_value(_LEVELS[level])}\n{implies}"
        )
    return "\n".join(tables)


def tool_table(tool: Mapping[str, Any], prefix: str) -> str:
    """Return the declaration of a tool: its description as a comment, and the guessed scope with the reason."""
    level, reason = guess(tool)
    return (
        f"[tools.{toml_key(tool['name'])}]\n"
        f"# {summary(tool)}\n"
        f"scopes = {_value([f'{prefix}:{level}'])}  {TO_BE_CONFIRMED} {reason}\n"
    )


def _denied_table(tool: Mapping[str, Any], reason: str) -> str:
    return f"[tools.{toml_key(tool['name'])}]\n# {summary(tool)}\ndeny = true  # {reason}\n"


def guess(tool: Mapping[str, Any]) -> tuple[str, str]:
    """Return the level of a tool's scope, and the reason, which contains nothing that the upstream wrote."""
    annotations = tool.get("annotations")
    hints = annotations if isinstance(annotations, Mapping) else {}
    read_only, destructive = hints.get("readOnlyHint"), hints.get("destructiveHint")
    if read_only is True and destructive is True:
        return "admin", "readOnlyHint and destructiveHint contradict each other"
    if destructive is True:
        return "admin", "destructiveHint is true"
    if read_only is True:
        return "read", "readOnlyHint is true"
    if destructive is False:
        return "write", "destructiveHint is false"
    return "write", "no annotation says what the tool does"


def summary(tool: Mapping[str, Any]) -> str:
    """Return the first line of a tool's description, printable and cut."""
    description = tool.get("description")
    text = description.strip().partition("\n")[0] if isinstance(description, str) else ""
    return _shown(text) or "(no description)"


def scope_prefix(transport: HttpTransport | StdioTransport) -> str:
    """Return a short name of an upstream, from its host name or its command, to start the names of scopes with."""
    candidates = _names_of_url(transport.url) if isinstance(transport, HttpTransport) else _names_of(transport.command)
    for candidate in candidates:
        words = [
            word for word in re.split(r"[^a-z0-9]+", candidate.lower()) if word not in {"", "mcp", "server", "www"}
        ]
        if prefix := "-".join(words)[:_PREFIX].strip("-"):
            return prefix
    return "upstream"


def _names_of_url(url: str) -> list[str]:
    """Return the labels of the host, from the left, or the parts of the path if the host is an address."""
    parts = urlsplit(url)
    host = parts.hostname or "localhost"
    try:
        ip_address(host)
    except ValueError:
        if host != "localhost":
            return host.split(".")
    return parts.path.split("/")


def _names_of(command: tuple[str, ...]) -> list[str]:
    """Return the arguments that may name the server: `@scope/server-notes@1.2` and `notes.py` name notes."""
    names = [PurePath(word).name for word in command if not word.startswith("-")]
    # Without a version, or the ending of a file.
    return [re.split(r"[@=\[]|\.(?:js|mjs|cjs|ts|py|jar|exe|sh)$", name)[0] for name in names if name not in _LAUNCHERS]


def toml_key(name: str) -> str:
    """Return a name as a key of TOML, in quotes if it needs them."""
    return tomlkit.key(name).as_string()


def _value(value: Any) -> str:
    return str(tomlkit.item(value).as_string())


def _shown(text: str) -> str:
    return escape_invisible(text[:_SUMMARY])
