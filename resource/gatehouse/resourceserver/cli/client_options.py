"""The argument and the options of the commands that are clients of an MCP server: `bridge` and `token`."""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from gatehouse.bridge.credentials import Credentials, InvalidCredentials
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.shared.protocol.resource_identifiers import InvalidResourceIdentifier, parse_resource_identifier
from gatehouse.shared.service.cli import Refusal, env_file_of
from gatehouse.shared.service.setting_values import check_public_url
from gatehouse.shared.service.settings_reading import load_settings

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_CREDENTIALS: Final = """\b
The credentials come from one of the options, or from the environment:
  BRIDGE_CLIENT_ID      client_id; also needed if FILE is a private key
  BRIDGE_CLIENT_SECRET  secret of a client_secret_basic client
  BRIDGE_PRIVATE_KEY    private key (PEM) of a private_key_jwt client
  BRIDGE_TOKEN_FILE     as --token-file; needs no BRIDGE_CLIENT_ID

\b
More variables:
  BRIDGE_CA_FILE        certificates (PEM) of the authorities to trust;
                        default: SSL_CERT_FILE, or those of the system
  BRIDGE_LOG_LEVEL      DEBUG, INFO or WARNING (the default)

Credentials are sent only to the issuer. Without --issuer, the MCP server's metadata names it. Then only an issuer on
the MCP server's own origin is accepted, or any loopback address if the MCP server is on loopback too. Plain http is
allowed only for loopback addresses."""


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


def client_options(function: FunctionT) -> FunctionT:
    """Add URL, --issuer, --credentials, --token-file and --github-oidc to a command."""
    for decorate in reversed(
        (
            click.argument("url", callback=_check_url),
            click.option(
                "--issuer",
                metavar="URL",
                callback=_check_issuer,
                help="Issuer URL of the authorization server. The credentials are sent only to it.",
            ),
            click.option(
                "--credentials",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="Output of `authserver client create --output json`, or a private key in PEM. Mode 0600.",
            ),
            click.option(
                "--token-file",
                metavar="FILE",
                type=click.Path(path_type=Path),
                help="File with the token that the platform issues to this workload, such as a projected token of "
                "Kubernetes. Others may read it. Default: BRIDGE_TOKEN_FILE.",
            ),
            click.option(
                "--github-oidc",
                is_flag=True,
                help="In a job of GitHub Actions: request the job's token from GitHub, for each token request.",
            ),
        )
    ):
        function = decorate(function)
    return function


def explain_credentials(function: FunctionT) -> FunctionT:
    """Append to a command's help where credentials come from and go to."""
    function.__doc__ = f"{inspect.cleandoc(function.__doc__ or '')}\n\n{_CREDENTIALS}"
    return function


def client_settings(ctx: click.Context) -> BridgeSettings:
    """Return the settings of a client.

    Raises:
        click.UsageError: `--env-file` is given.
        InvalidSettings: a variable is unusable.
    """
    if env_file_of(ctx) is not None:
        raise click.UsageError(
            f"`{ctx.info_name}` does not read --env-file. Use --credentials FILE, or environment variables."
        )
    return load_settings(BridgeSettings)


def read_or_refuse(read: Callable[[], Credentials]) -> Credentials:
    """Read the credentials. Raises Refusal."""
    try:
        return read()
    except InvalidCredentials as error:
        raise Refusal(str(error)) from None
