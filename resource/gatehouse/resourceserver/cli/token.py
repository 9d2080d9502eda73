"""`resourceserver token`: an access token for scripts, and for MCP clients that run a command for their headers."""

import json
import math
import time
from functools import partial
from pathlib import Path

import click

from gatehouse.bridge.credentials import Credentials, read_credentials
from gatehouse.bridge.settings import BridgeSettings
from gatehouse.bridge.token_cache import CacheUnusable, StoredToken, TokenCache, cache_key, default_folder
from gatehouse.resourceserver.cli.client_options import (
    client_options,
    client_settings,
    explain_credentials,
    read_or_refuse,
)
from gatehouse.shared.protocol.scopes import InvalidScopeSyntax, format_scope, parse_scope
from gatehouse.shared.service.cli import Refusal, example, join_scopes

_LOCK_TIMEOUT = 20
"""Seconds to wait for another process that requests the same token: as long as it may wait for one response."""


def _check_scope(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> str:
    try:
        return format_scope(parse_scope(joined)) if (joined := join_scopes(ctx, parameter, values)) else ""
    except InvalidScopeSyntax as error:
        raise click.BadParameter(str(error)) from None


@click.command()
@client_options
@click.option(
    "--scope",
    multiple=True,
    callback=_check_scope,
    metavar='"A B"',
    help="Request only these scopes. Default: all that are granted.",
)
@click.option(
    "--output",
    type=click.Choice(["token", "header", "headers-json", "json"]),
    default="token",
    show_default=True,
    help="What to print: the token; `Authorization: Bearer ...`; the same as a JSON object, for helpers of MCP "
    "clients; a token response.",
)
@click.option("--no-cache", is_flag=True, help="Request a new token, and do not keep it.")
@click.pass_context
@example(
    "With curl, which reads the header from standard input:\n"
    "  resourceserver token https://mcp.example.com/mcp \\\n"
    "      --issuer https://auth.example.com --credentials client.json --output header |\n"
    "      curl -H @- -H 'Content-Type: application/json' -H 'Accept: application/json, text/event-stream' \\\n"
    "      -d @request.json https://mcp.example.com/mcp\n"
    "As the command that an MCP client runs for its headers, in a pod:\n"
    "  resourceserver token https://mcp.example.com/mcp --issuer https://auth.example.com \\\n"
    "      --token-file /var/run/secrets/gatehouse/token --output headers-json"
)
@explain_credentials
def token(
    ctx: click.Context,
    *,
    url: str,
    issuer: str | None,
    credentials: Path | None,
    token_file: Path | None,
    github_oidc: bool,
    scope: str,
    output: str,
    no_cache: bool,
) -> None:
    """Print an access token for the MCP server at URL.

    For scripts, for curl, and for MCP clients that run a command to get their HTTP headers. Standard output has the
    token and nothing else. Warnings and errors go to standard error, and the exit code is 1 if there is no token.

    The token is kept in a file that only you can access, below $XDG_CACHE_HOME/gatehouse or ~/.cache/gatehouse, and is
    printed again until 60 seconds before it expires. Of many processes that need the same token, one requests it.
    """
    settings = client_settings(ctx)
    found = read_or_refuse(partial(read_credentials, settings, credentials, token_file=token_file, github=github_oidc))
    request = partial(_request, settings, url, issuer, found, scope)
    cache = None if no_cache else _open_cache()
    if cache is None:
        obtained = request()
    else:
        key = cache_key(issuer, url, found.client_id, scope, found.digest())
        obtained = cache.get_or_request(key, request, _LOCK_TIMEOUT)
    click.echo(_format(obtained, output))


def _open_cache() -> TokenCache | None:
    try:
        return TokenCache(default_folder(), _warn)
    except CacheUnusable as error:
        _warn(f"The token is not kept. {error}")
        return None


def _warn(message: str) -> None:
    click.echo(f"Warning: {message}", err=True)


def _request(
    settings: BridgeSettings, resource: str, issuer: str | None, credentials: Credentials, scope: str
) -> StoredToken:
    """Request a token. Raises Refusal: none is issued."""
    # They import the HTTP client, which takes longer than to read a token that was kept.
    from gatehouse.bridge.errors import BridgeError  # noqa: PLC0415
    from gatehouse.bridge.one_token import obtain_token  # noqa: PLC0415

    try:
        return obtain_token(settings, resource, issuer, credentials, scope)
    except BridgeError as error:
        raise Refusal(str(error)) from None


def _format(obtained: StoredToken, output: str) -> str:
    match output:
        case "header":
            return f"Authorization: Bearer {obtained.value}"
        case "headers-json":
            return json.dumps({"Authorization": f"Bearer {obtained.value}"})
        case "json":
            members: dict[str, str | int] = {"access_token": obtained.value, "token_type": "Bearer"}
            if math.isfinite(obtained.expires_at):
                members["expires_in"] = max(0, int(obtained.expires_at - time.time()))
            return json.dumps({**members, "scope": obtained.scope})
        case _:
            return obtained.value
