"""`resourceserver bridge`: a remote MCP server for desktop clients that support only stdio."""

import logging
import signal
from functools import partial
from pathlib import Path

import anyio
import click

from gatehouse.bridge.credentials import CA_FILE_SETTING, BridgeSettings, InvalidCredentials, read_credentials
from gatehouse.bridge.server import serve
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.service.cli import Refusal, env_file_of, example
from gatehouse.shared.service.logs import configure_logs
from gatehouse.shared.service.setting_values import check_public_url
from gatehouse.shared.service.settings_reading import load_settings
from gatehouse.shared.service.tls import tls_context


def _check_url(_: click.Context, __: click.Parameter, value: str) -> str:
    try:
        return check_public_url(parse_resource_identifier(value))
    except (InvalidResourceIdentifier, ValueError) as error:
        raise click.BadParameter(str(error)) from None


def _check_issuer(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    try:
        # Not normalized, because issuers are compared exactly (RFC 8414 section 3.3).
        return None if value is None else check_public_url(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@click.argument("url", callback=_check_url)
@click.option(
    "--issuer",
    metavar="URL",
    callback=_check_issuer,
    help="Issuer URL of the authorization server. The credentials are sent only to it.",
)
@click.option(
    "--credentials",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Output of `authserver client create --output json`, or a private key in PEM. Mode 0600.",
)
@click.pass_context
@example(
    "resourceserver bridge https://mcp.example.com/mcp --issuer https://auth.example.com"
    " --credentials ~/.config/gatehouse/client.json\n"
    "BRIDGE_CLIENT_ID=agent_... resourceserver bridge http://127.0.0.1:8000/mcp --credentials agent.pem"
)
def bridge(ctx: click.Context, url: str, issuer: str | None, credentials: Path | None) -> None:
    """Connect a stdio MCP client to the MCP server at URL.

    Desktop MCP clients that support only stdio start this command. The bridge obtains and renews access tokens by
    client credentials, forwards requests, and reports a rejected request with the reason and how to fix it. A new
    grant applies from the next call. Logs go to standard error.

    \b
    The credentials come from --credentials FILE or from the environment:
      BRIDGE_CLIENT_ID      client_id; also needed if FILE is a private key
      BRIDGE_CLIENT_SECRET  secret of a client_secret_basic client
      BRIDGE_PRIVATE_KEY    private key (PEM) of a private_key_jwt client

    \b
    More settings:
      BRIDGE_CA_FILE        certificates (PEM) of the authorities to trust;
                            default: SSL_CERT_FILE, or those of the system
      BRIDGE_LOG_LEVEL      DEBUG, INFO or WARNING (the default)

    FILE is read for each token request, so a rotated secret needs no restart. Plain http is allowed only for loopback
    addresses.

    Without --issuer, the MCP server's metadata names the authorization server. The bridge accepts only one on the MCP
    server's own origin, or any loopback address if the MCP server is on loopback too.
    """  # noqa: D301 - click reads the control character
    if env_file_of(ctx) is not None:
        raise click.UsageError("The bridge does not read --env-file. Use --credentials FILE, or environment variables.")
    settings = load_settings(BridgeSettings)
    configure_logs("console", settings.log_level)
    # The SDK also raises what it logs about a failed exchange, and the bridge reports the exception.
    logging.getLogger("mcp").setLevel(logging.CRITICAL)
    read = partial(read_credentials, settings, credentials)
    # Fails here with a message rather than in the event loop.
    tls_context(settings.ca_file, CA_FILE_SETTING)
    try:
        read()
    except InvalidCredentials as error:
        raise Refusal(str(error)) from None
    # The default handler ends the process immediately, even while a thread waits for standard input.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        anyio.run(serve, url, issuer, read, settings.ca_file)
    except* BrokenPipeError:
        # The desktop client has exited.
        pass
