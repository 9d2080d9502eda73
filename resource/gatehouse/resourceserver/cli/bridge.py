"""`resourceserver bridge`: a remote MCP server for desktop assistants, which only start programs."""

import logging
import signal
from functools import partial
from pathlib import Path

import anyio
import click

from gatehouse.bridge.credentials import InvalidCredentials, read_credentials
from gatehouse.bridge.serving import serve
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.service.cli import Refusal, env_file_of, example
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.settings import check_public_url, load_settings


def _check_url(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return check_public_url(parse_resource_identifier(value))
    except (InvalidResourceIdentifier, ValueError) as error:
        raise click.BadParameter(str(error)) from None


def _check_issuer(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        # As it was written: issuers are compared exactly (RFC 8414 3.3).
        return None if value is None else check_public_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("url", callback=_check_url)
@click.option(
    "--issuer",
    metavar="URL",
    callback=_check_issuer,
    help="The authorization server that issued the credentials; they are sent nowhere else.",
)
@click.option(
    "--credentials",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Mode 0600: the JSON that `authserver client create --output json` printed, or a private key in PEM.",
)
@click.pass_context
@example(
    "resourceserver bridge https://mcp.example.com/mcp --issuer https://auth.example.com"
    " --credentials ~/.config/gatehouse/client.json\n"
    "BRIDGE_CLIENT_ID=agent_... resourceserver bridge http://127.0.0.1:8000/mcp --credentials agent.pem"
)
def bridge(ctx: click.Context, url: str, issuer: str | None, credentials: Path | None) -> None:
    """Serve the MCP server at URL over standard input and output, for a desktop assistant to start.

    It obtains and renews tokens by client credentials, forwards what the assistant asks, and tells it in words what
    was refused and who can fix it. A new grant works at the next call. Logs go to standard error.

    \b
    The credentials come from --credentials FILE, or from the environment:
      BRIDGE_CLIENT_ID      the client_id; with a private key in FILE, too
      BRIDGE_CLIENT_SECRET  the secret of a client_secret_basic client
      BRIDGE_PRIVATE_KEY    or the private key of a client that has one, in PEM
      BRIDGE_LOG_LEVEL      DEBUG, INFO or WARNING (the default)

    FILE is read again for each token: a replaced secret needs no restart. Plain http is for loopback addresses.

    Without --issuer, the server at URL says where tokens come from, and is believed only if that is its own origin,
    or if both are on this machine: nobody else may choose where the credentials go.
    """  # noqa: D301 - click reads the control character
    if env_file_of(ctx) is not None:
        raise click.UsageError("The bridge reads no --env-file. Give --credentials FILE, or variables.")
    settings = load_settings(BridgeSettings)
    configure_logs("console", settings.log_level)
    # What the SDK logs of a failed exchange comes back as an exception, and is told in words.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    read = partial(read_credentials, settings, credentials)
    try:
        read()
    except InvalidCredentials as error:
        raise Refusal(str(error)) from None
    # At once, though a thread waits for standard input.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        anyio.run(serve, url, issuer, read)
    except* BrokenPipeError:
        # The assistant is gone; nobody is left to tell.
        pass
