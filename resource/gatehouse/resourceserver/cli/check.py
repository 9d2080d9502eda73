"""`resourceserver check`: everything that keeps the server from starting or serving, at once."""

import logging

import anyio
import click
import httpx2

from gatehouse.resourceserver.app import baseline_scopes
from gatehouse.resourceserver.bearer.fetch import FetchFailed, http_fetch
from gatehouse.resourceserver.catalogue import Catalogue
from gatehouse.resourceserver.cli.catalogue_loading import load_catalogue
from gatehouse.resourceserver.cli.installation import open_database, settings_of, tools_option
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.jws import InvalidKeySet, parse_key_set
from gatehouse.shared.service.addresses import describe_address
from gatehouse.shared.service.checks import Check, check_settings, run_checks
from gatehouse.shared.service.cli import (
    EXPECTED_FAILURES,
    env_file_of,
    example,
    explain_option,
    output_option,
    print_checks,
    print_records,
)
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.settings import explain_settings


@click.command()
@tools_option
@explain_option
@output_option
@click.pass_context
@example("resourceserver check\nresourceserver check --tools mypackage.mytools\nresourceserver check --explain")
def check(ctx: click.Context, tools_module: str | None, explain: bool, output: str) -> None:
    """Check settings, address, catalogue, database, and that the issuer's keys can be had.

    Exit code 1 when something fails. The server starts without the issuer's keys, and waits for them. An address in
    use is no failure, because the server itself may be running.
    """
    if explain:
        columns = ("setting", "value", "source", "default", "description")
        print_records(explain_settings(Settings, env_file_of(ctx)), columns, output)
        return
    settings, checks = check_settings(lambda: settings_of(ctx, tools_module))
    print_checks(ctx, checks if settings is None else [*checks, *_check_installation(settings)], output)


def _check_installation(settings: Settings) -> list[Check]:
    loaded: list[Catalogue] = []

    def catalogue() -> str:
        found = load_catalogue(settings.tools)
        loaded.append(found)
        return f"{len(found.tools)} tools; a 401 asks for: {' '.join(sorted(baseline_scopes(settings, found)))}"

    def schema() -> str:
        with open_database(settings, loaded[0].load_schema() if loaded else None):
            return shown_url(settings.database)

    def issuer_keys() -> str:
        return f"{anyio.run(_count_keys, settings.issuer)} keys of {settings.issuer}"

    def address() -> str:
        return describe_address(settings.bind, f"RESOURCESERVER_BIND={settings.bind}")

    # What these parts log of the same failures would stand beside the table.
    logging.getLogger("gatehouse").addHandler(logging.NullHandler())
    steps = (("address", address), ("catalogue", catalogue), ("database", schema), ("issuer's keys", issuer_keys))
    return run_checks(steps, (*EXPECTED_FAILURES, FetchFailed, InvalidKeySet))


async def _count_keys(issuer: str) -> int:
    async with httpx2.AsyncClient(trust_env=False) as client:
        fetched = await http_fetch(client, f"{issuer}/.well-known/jwks.json")(None)
    return len(parse_key_set(fetched.document if fetched is not None else b""))
