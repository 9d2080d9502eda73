"""`resourceserver policy confirm`: allows calls of tools as the upstream describes them now."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy, PolicyFile, parse_policy
from gatehouse.resourceserver.catalogue.tool_digest import tool_digest
from gatehouse.resourceserver.cli.installation import upstream_option
from gatehouse.resourceserver.cli.policy_inputs import PolicyInputs, read_inputs
from gatehouse.resourceserver.upstream.confirming import with_digests
from gatehouse.resourceserver.upstream.drafting import (
    guess,
    scope_prefix,
    scope_tables,
    toml_key,
    tool_table,
)
from gatehouse.resourceserver.upstream.drift import ToolState, compare, unusable_reason
from gatehouse.shared.protocol.scopes import ScopeHierarchy, format_scope
from gatehouse.shared.protocol.visible_text import escape_invisible
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.cli import confirm as ask
from gatehouse.shared.service.files import FileChanged, edit_file
from gatehouse.shared.service.output import print_records


@click.command()
@click.argument("names", metavar="[TOOL]...", nargs=-1)
@click.option("--all", "every", is_flag=True, help="Every tool of the policy that is unconfirmed, or has changed.")
@upstream_option
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example(
    "resourceserver policy confirm echo --upstream policy.toml\n"
    "resourceserver policy confirm --all --upstream policy.toml"
)
def confirm(
    ctx: click.Context, names: tuple[str, ...], every: bool, upstream: Path | None, yes: bool, output: str
) -> None:
    """Allow calls of tools as the MCP server describes them now.

    Shows each tool with its scopes, and writes its digest into the policy file. If the server changes the name, the
    description, a schema, an annotation or anything else of the tool, it is withheld until it is confirmed again.

    A running server uses the file within seconds. Exit code 2 if the policy or the server cannot be read.
    """
    if every == bool(names):
        raise click.UsageError("Which tools? Name them, or give --all.")
    found = read_inputs(ctx, upstream)
    states = compare(found.policy, list(found.tools.values()))
    if every:
        names = tuple(name for name, state in states.items() if state in {ToolState.UNCONFIRMED, ToolState.CHANGED})
    digests = {name: _digest(found, name) for name in names}
    digests = {name: digest for name, digest in digests.items() if digest != found.policy.tools[name].digest}
    if digests:
        for name in digests:
            click.echo("\n".join(_shown(found, name, states[name])), err=True)
        ask(
            f"Confirm {'this tool' if len(digests) == 1 else f'these {len(digests)} tools'}?",
            yes=yes,
            because="A person must confirm a tool.",
        )
        _write(found, digests)
    records = [
        {"tool": name, "digest": digest, "scopes": sorted(found.policy.tools[name].scopes)}
        for name, digest in digests.items()
    ]
    if records or output == "json":
        print_records(records, ("tool", "digest", "scopes"), output)
    else:
        click.echo("There is nothing to confirm.")


def _digest(found: PolicyInputs, name: str) -> str:
    """Return the digest of a tool of the upstream. Raises Refusal if the policy cannot allow the tool."""
    tool = found.tools.get(name)
    if name in found.policy.denied:
        raise Refusal(f"{name} has `deny = true` in {found.path}. To allow it, write its scopes instead.")
    if tool is None:
        raise Refusal(f"The upstream has no tool {name}. To see what differs, run: {found.command('check')}")
    if name not in found.policy.tools:
        raise Refusal(_lines_to_add(found, tool))
    if (reason := unusable_reason(tool, found.policy.tools[name])) is not None:
        raise Refusal(f"{name} cannot be served: {reason}. Correct its rules, or deny it, in {found.path}.")
    return tool_digest(tool)


def _lines_to_add(found: PolicyInputs, tool: Mapping[str, Any]) -> str:
    if (reason := unusable_reason(tool)) is not None:
        return f"{escape_invisible(tool['name'])} cannot be served: {reason}."
    declared = sorted(found.policy.scopes)
    prefix = declared[0].rpartition(":")[0] if declared else ""
    prefix = prefix or scope_prefix(found.policy.upstream.transport)
    level = guess(tool)[0]
    scope = "" if f"{prefix}:{level}" in declared else f"{scope_tables(prefix, {level})}\n"
    return (
        f"{found.path} does not mention {tool['name']}, so it is denied. To allow it, add these lines with the right "
        f"scope, and repeat the command:\n\n{scope}{tool_table(tool, prefix)}"
    )


def _shown(found: PolicyInputs, name: str, state: ToolState) -> Iterator[str]:
    """Yield the lines that describe a tool. Each character that a person would not see is an escape."""
    tool, scopes = found.tools[name], found.policy.tools[name].scopes
    implied = ScopeHierarchy({key: frozenset(scope.implies) for key, scope in found.policy.scopes.items()})
    callers = format_scope(scopes) or "(any valid token)"
    others = sorted(
        scope for scope in found.policy.scopes if scope not in scopes and scopes <= implied.closure({scope})
    )
    yield f"{name} ({state})"
    yield f"  scopes: {callers}{f'; also allowed by: {format_scope(others)}' if scopes and others else ''}"
    # What a person reads first. The sort keeps the order of the others.
    for member in sorted(tool, key=lambda member: member not in {"title", "description", "annotations"}):
        if member != "name":
            yield f"  {escape_invisible(member)}: {_value(tool[member])}"
    yield ""


def _value(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return "\n    ".join(map(escape_invisible, text.split("\n")))


def _write(found: PolicyInputs, digests: Mapping[str, str]) -> None:
    """Write the digests into the policy file. Raises Refusal if the file has changed, or cannot be edited."""
    tools = {name: replace(found.policy.tools[name], digest=digest) for name, digest in digests.items()}
    expected = replace(found.policy, tools={**found.policy.tools, **tools})
    used = frozenset(scope for tool in tools.values() for scope in tool.scopes)
    edited = _edited(found, digests, used)
    if edited is None or _parsed(edited, found.path) != expected:
        lines = [f"  [tools.{toml_key(name)}]  digest = {json.dumps(digest)}" for name, digest in digests.items()]
        raise Refusal("\n".join([f"{found.path} cannot be edited as it is written. Add these digests to it:", *lines]))
    try:
        edit_file(found.path, found.text.encode(), edited.encode())
    except FileChanged:
        raise Refusal(f"{found.path} has changed in the meantime. Nothing was written: repeat the command.") from None


def _edited(found: PolicyInputs, digests: Mapping[str, str], scopes: frozenset[str]) -> str | None:
    try:
        return with_digests(found.text, digests, scopes)
    except ValueError:
        return None


def _parsed(text: str, path: Path) -> PolicyFile | None:
    try:
        return parse_policy(text, path.parent)
    except InvalidPolicy:
        return None
