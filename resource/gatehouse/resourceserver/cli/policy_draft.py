"""`resourceserver policy draft`: a policy for an MCP server, with guesses that an operator confirms."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from gatehouse.resourceserver.catalogue.policy_file import parse_policy
from gatehouse.resourceserver.cli.policy_inputs import inputs, list_tools
from gatehouse.resourceserver.upstream.drafting import (
    draft_policy,
    guess,
    scope_prefix,
    upstream_section,
)
from gatehouse.resourceserver.upstream.drift import unusable_reason
from gatehouse.shared.service.cli import Refusal, example
from gatehouse.shared.service.output import print_records


@click.command()
@click.argument("command", metavar="[-- COMMAND ARG...]", nargs=-1)
@click.option("--url", metavar="URL", help="The MCP endpoint of a server that speaks Streamable HTTP.")
@click.option("--header", metavar="NAME", help="With --url: the header of a credential, such as X-Api-Key.")
@click.option(
    "--header-file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="With --header: the file with its value. Mode 0600.",
)
@click.option(
    "--environment",
    metavar="NAME",
    multiple=True,
    help="With COMMAND: a variable of the environment that the program gets besides PATH; repeatable.",
)
@click.option(
    "--scope-prefix", "prefix", metavar="NAME", help="The start of the scopes.  [default: the host or the program]"
)
@click.option(
    "--output-file",
    "path",
    metavar="FILE",
    type=click.Path(path_type=Path),
    default=Path("policy.toml"),
    show_default=True,
    help="Where to write the policy, which must not exist; - for standard output.",
)
@example(
    "resourceserver policy draft -- npx -y @modelcontextprotocol/server-everything\n"
    "resourceserver policy draft --url http://127.0.0.1:3001/mcp --output-file notes.toml"
)
def draft(prefix: str | None, path: Path, **options: Any) -> None:
    """Write a policy for the MCP server at --url, or for the program COMMAND, which speaks MCP over stdio.

    The command asks the server for its tools. It guesses the scope of each tool from the annotations: NAME:read for
    readOnlyHint, NAME:admin for destructiveHint, otherwise NAME:write. Every guess is marked for confirmation. Until
    `resourceserver policy confirm`, no tool can be called.

    Exit code 2 if the server does not list its tools.
    """
    to_file = path != Path("-")
    folder = path.parent
    section = upstream_section(_members(folder, **options))
    if to_file and path.exists():
        raise _exists(path)
    with inputs():
        # The draft without tools, because there is one parser for the settings of an upstream.
        upstream = parse_policy(draft_policy(section, "upstream", {}), folder).upstream
        tools = list_tools(upstream)
        prefix = prefix or scope_prefix(upstream.transport)
        text = draft_policy(section, prefix, tools)
        # Another prefix may not fit into a scope.
        parse_policy(text, folder)
    if not to_file:
        click.echo(text, nl=False)
        return
    try:
        with path.open("x", encoding="utf-8", newline="") as file:
            file.write(text)
    except FileExistsError:
        raise _exists(path) from None
    print_records([_record(tool, prefix) for tool in tools.values()], ("tool", "scope", "reason"), "table")
    click.echo(
        f"{path} is written. Read it, correct the scopes, and run: "
        f"{shlex.join(['resourceserver', 'policy', 'confirm', '--all', '--upstream', str(path)])}",
        err=True,
    )


def _record(tool: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    if (obstacle := unusable_reason(tool)) is not None:
        return {"tool": tool["name"], "scope": "(denied)", "reason": obstacle}
    level, reason = guess(tool)
    return {"tool": tool["name"], "scope": f"{prefix}:{level}", "reason": reason}


def _exists(path: Path) -> Refusal:
    return Refusal(f"{path} exists already, and is not replaced. Remove it, or choose another file with --output-file.")


def _members(
    folder: Path,
    command: tuple[str, ...],
    url: str | None,
    header: str | None,
    header_file: Path | None,
    environment: tuple[str, ...],
) -> Mapping[str, Any]:
    """Return the members of [upstream]. Raises UsageError for options that contradict each other."""
    if (url is None) == (not command):
        raise click.UsageError("Which server? Give either --url URL, or -- COMMAND ARG...")
    if (header is None) != (header_file is None):
        raise click.UsageError("Give both --header and --header-file, or neither.")
    if url is None:
        if header is not None:
            raise click.UsageError("A program has no headers. Pass a variable to it with --environment NAME.")
        # A program without a slash is found in PATH.
        program = _from_folder(folder, command[0]) if "/" in command[0] else command[0]
        return {"command": [program, *command[1:]], **({"environment": list(environment)} if environment else {})}
    if environment:
        raise click.UsageError("--environment is for a COMMAND.")
    if header_file is None:
        return {"url": url}
    return {"url": url, "credential": {"header": header, "file": _from_folder(folder, str(header_file))}}


def _from_folder(folder: Path, path: str) -> str:
    """Return a path as a policy file in a folder names it: relative paths are relative to that folder."""
    return path if folder == Path() else str(Path(path).absolute())
