"""`resourceserver policy check`: what a policy and the tools of its upstream do not agree about."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from gatehouse.resourceserver.catalogue.catalogue import TOOL_NAME
from gatehouse.resourceserver.cli.installation import upstream_option
from gatehouse.resourceserver.cli.policy_inputs import PolicyInputs, read_inputs
from gatehouse.resourceserver.upstream.drafting import summary, toml_key
from gatehouse.resourceserver.upstream.drift import ToolState, compare, unusable_reason
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.output import print_records


@click.command()
@upstream_option
@output_option
@click.pass_context
@example(
    "resourceserver policy check --upstream policy.toml\n"
    "RESOURCESERVER_UPSTREAM=policy.toml resourceserver policy check --output json"
)
def check(ctx: click.Context, upstream: Path | None, output: str) -> None:
    """Compare the policy with the tools of its MCP server.

    Lists each tool that is new (the policy does not mention it), gone, changed since it was confirmed, unconfirmed, or
    unusable, such as for a rule about an argument that the tool does not have; and how to fix it. None of these can be
    called. A tool with `deny = true` is not listed.

    Exit code 0 if both agree, 1 if they differ, 2 if the policy or the server cannot be read.
    """
    found = read_inputs(ctx, upstream)
    differences = list(_differences(found))
    if differences or output == "json":
        print_records(differences, ("tool", "state", "detail", "fix"), output)
    else:
        click.echo(f"The policy and its MCP server agree about {len(found.policy.tools)} tools.")
    if differences:
        ctx.exit(1)


def _differences(found: PolicyInputs) -> Iterator[dict[str, Any]]:
    for name, state in compare(found.policy, list(found.tools.values())).items():
        obstacle = _obstacle(found, name)
        # No policy can mention a name that MCP does not allow, and no such tool is served.
        if (state is not ToolState.SERVED or obstacle is not None) and TOOL_NAME.fullmatch(name):
            yield {
                "tool": name,
                "state": str(ToolState.UNUSABLE if state is ToolState.SERVED else state),
                "detail": None if state is ToolState.GONE else obstacle or summary(found.tools[name]),
                "fix": _fix(found, name, state, obstacle),
            }


def _obstacle(found: PolicyInputs, name: str) -> str | None:
    """Return why a tool of the upstream cannot be served; None if it can, or is gone."""
    if (tool := found.tools.get(name)) is None:
        return None
    return unusable_reason(tool, found.policy.tools.get(name))


def _fix(found: PolicyInputs, name: str, state: ToolState, obstacle: str | None) -> str:
    if state is ToolState.GONE:
        return f"remove [tools.{toml_key(name)}] from {found.path}"
    if state is ToolState.NEW:
        if obstacle is not None:
            return f"deny it: [tools.{toml_key(name)}] deny = true"
        return f"for the lines to add, run: {found.command('confirm', name)}"
    if obstacle is not None:
        return f"correct its rules, or deny it, in {found.path}"
    return found.command("confirm", name)
