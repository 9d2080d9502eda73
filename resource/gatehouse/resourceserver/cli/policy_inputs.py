"""What the `policy` commands work with: the policy file, and the tools that its upstream lists."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import click

from gatehouse.resourceserver.catalogue.policy_file import (
    HttpTransport,
    InvalidPolicy,
    PolicyFile,
    UpstreamSettings,
    parse_policy,
)
from gatehouse.resourceserver.catalogue.policy_reading import read_policy_text
from gatehouse.resourceserver.cli.catalogue_loading import unusable
from gatehouse.resourceserver.cli.installation import settings_of
from gatehouse.resourceserver.upstream.opening import open_upstream
from gatehouse.resourceserver.upstream.upstream import UpstreamError
from gatehouse.shared.service.cli import Refusal

Tools = Mapping[str, Mapping[str, Any]]
"""The tools as the upstream lists them, by name."""


class NoInput(Refusal):
    """The policy file, the settings or the upstream cannot be read. Exit code 2, so that 1 can mean a difference."""

    exit_code = 2


@contextmanager
def inputs() -> Iterator[None]:
    """Turn every failure of the block that an operator can fix into NoInput."""
    try:
        yield
    except (InvalidPolicy, UpstreamError) as error:
        raise NoInput(str(error)) from None
    except Exception as error:
        # Imported for a failure only: it brings SQLAlchemy.
        explain = import_module("gatehouse.shared.service.failures").explain
        if isinstance(error, NoInput) or (explanation := explain(error)) is None:
            raise
        raise NoInput(explanation) from None


class PolicyInputs(NamedTuple):
    """A policy file and the tools of its upstream."""

    path: Path
    text: str
    """The file, as it was parsed."""
    policy: PolicyFile
    tools: Tools
    option: Sequence[str]
    """What a further command needs to use the same file."""

    def command(self, name: str, *tools: str) -> str:
        """Return the text of another `policy` command for the same file."""
        # An operator may paste it into a shell, and an upstream chooses the names of its tools.
        end_of_options = ["--"] if any(tool.startswith("-") for tool in tools) else []
        return shlex.join(["resourceserver", "policy", name, *self.option, *end_of_options, *tools])


def read_inputs(ctx: click.Context, upstream: Path | None) -> PolicyInputs:
    """Read the policy file of `--upstream` or of the settings, and request the tools of its upstream.

    Raises:
        NoInput: there is none, or one of the two cannot be read.
    """
    with inputs():
        path = settings_of(ctx, upstream=upstream).upstream
        if path is None:
            raise NoInput("Which policy file? Name it with --upstream, or set RESOURCESERVER_UPSTREAM.")
        try:
            text = read_policy_text(path)
            policy = parse_policy(text, path.parent)
        except InvalidPolicy as error:
            raise NoInput(unusable(path, error)) from None
        tools = list_tools(policy.upstream)
    option = () if upstream is None else ("--upstream", str(upstream))
    return PolicyInputs(path, text, policy, tools, option)


def list_tools(upstream: UpstreamSettings) -> Tools:
    """Request the tools of an upstream. Raises NoInput."""
    listed = anyio.run(_list, upstream)
    if isinstance(listed, UpstreamError):
        raise NoInput(f"The upstream did not list its tools: {listed}. {_remediation(upstream)}")
    return {tool["name"]: tool for tool in listed}


async def _list(settings: UpstreamSettings) -> list[dict[str, Any]] | UpstreamError:
    upstream = open_upstream(settings)
    # Returned, because a task group would put the exception into a group.
    async with upstream.running():
        try:
            return await upstream.list_tools()
        except UpstreamError as error:
            return error


def _remediation(upstream: UpstreamSettings) -> str:
    transport = upstream.transport
    if isinstance(transport, HttpTransport):
        return f"Check that an MCP server runs at {transport.url}, and the credential in [upstream.credential]."
    return f"To see what the program prints, run: {shlex.join(transport.command)}"
