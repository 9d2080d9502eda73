"""`resourceserver policy`: the policy file of an MCP server behind the gateway, and what that server lists."""

import click

from gatehouse.shared.service.cli import LazyGroup, example

_COMMANDS = {
    "check": (
        "gatehouse.resourceserver.cli.policy_check:check",
        "Compare the policy with the tools of its MCP server.",
    ),
    "confirm": (
        "gatehouse.resourceserver.cli.policy_confirm:confirm",
        "Allow calls of tools as the MCP server describes them now.",
    ),
    "draft": ("gatehouse.resourceserver.cli.policy_draft:draft", "Write a policy for an MCP server, with guesses."),
}


@click.group(cls=LazyGroup, lazy=_COMMANDS)
@example(
    "resourceserver policy draft -- npx -y @modelcontextprotocol/server-everything\n"
    "resourceserver policy check --upstream policy.toml\n"
    "resourceserver policy confirm echo --upstream policy.toml"
)
def policy() -> None:
    """Draft, check and confirm the policy of an MCP server behind the gateway (the upstream)."""
