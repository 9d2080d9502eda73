"""A gateway in front of an MCP server: both of our servers, with a policy that was drafted and confirmed."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from support.prepared_stack import PreparedStack, running

PREFIX = "upstream"
"""The start of the scopes: a tool that only reads needs `upstream:read`, and others another one."""


@contextmanager
def gateway(folder: Path, *upstream: str, **settings: str) -> Iterator[PreparedStack]:
    """Run an installation in front of an MCP server until the block ends. Callers may call every tool of it.

    Args:
        folder: is created, for the policy file and the installation.
        upstream: what `resourceserver policy draft` takes: `--url URL`, or `--` and a command.
        settings: further settings of the installation.
    """
    folder.mkdir()
    policy = folder / "policy.toml"
    settings = {**settings, "RESOURCESERVER_UPSTREAM": str(policy)}
    operator = PreparedStack(folder, settings=settings)
    operator.run("resourceserver", "policy", "draft", "--output-file", str(policy), "--scope-prefix", PREFIX, *upstream)
    operator.run("resourceserver", "policy", "confirm", "--all", "--yes")
    with running(folder / "stack", **settings) as stack:
        yield stack
