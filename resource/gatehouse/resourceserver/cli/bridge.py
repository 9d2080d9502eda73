"""`resourceserver bridge`: a remote MCP server for desktop clients that support only stdio."""

import logging
import signal
from functools import partial
from pathlib import Path

import anyio
import click

from gatehouse.bridge.credentials import read_credentials
from gatehouse.bridge.server import serve
from gatehouse.bridge.settings import CA_FILE_SETTING
from gatehouse.resourceserver.cli.client_options import (
    client_options,
    client_settings,
    explain_credentials,
    read_or_refuse,
)
from gatehouse.shared.service.cli import example
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.tls import tls_context


@click.command()
@client_options
@click.pass_context
@example(
    "resourceserver bridge https://mcp.example.com/mcp --issuer https://auth.example.com"
    " --credentials ~/.config/gatehouse/client.json\n"
    "BRIDGE_CLIENT_ID=agent_... resourceserver bridge http://127.0.0.1:8000/mcp --credentials agent.pem"
)
@explain_credentials
def bridge(
    ctx: click.Context,
    *,
    url: str,
    issuer: str | None,
    credentials: Path | None,
    token_file: Path | None,
    github_oidc: bool,
) -> None:
    """Connect a stdio MCP client to the MCP server at URL.

    Desktop MCP clients that support only stdio start this command. The bridge obtains and renews access tokens by
    client credentials, forwards requests, and reports a rejected request with the reason and how to fix it. A new
    grant applies from the next call. Logs go to standard error.

    A credentials file is read for each token request, so a rotated secret needs no restart.
    """
    settings = client_settings(ctx)
    configure_logs("console", settings.log_level)
    # The SDK also raises what it logs about a failed exchange, and the bridge reports the exception.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    # Fails here with a message rather than in the event loop.
    tls_context(settings.ca_file, CA_FILE_SETTING)
    read = partial(read_credentials, settings, credentials, token_file=token_file, github=github_oidc)
    read_or_refuse(read)
    # The default handler ends the process immediately, even while a thread waits for standard input.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        anyio.run(serve, url, issuer, read, settings.ca_file)
    except* BrokenPipeError:
        # The desktop client has exited.
        pass
