"""`resourceserver check`: reports everything that would stop the server from starting or serving."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
import click

from gatehouse.resourceserver.bearer.challenge import baseline_scopes
from gatehouse.resourceserver.bearer.fetch import create_http, http_fetch
from gatehouse.resourceserver.cli.catalogue_loading import load_policy, load_schema, load_served, read_resources
from gatehouse.resourceserver.cli.installation import given, served_options
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.settings import Settings
from gatehouse.shared.protocol.encoding import InvalidJson, parse_json
from gatehouse.shared.protocol.jws import InvalidKeySet
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.resource_identifiers import is_protected_transport
from gatehouse.shared.service.check_command import (
    address_steps,
    audit_keys_step,
    check_server,
    database_steps,
    explain_option,
    limits_step,
)
from gatehouse.shared.service.checks import Step
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.fetch import FetchFailed


@click.command()
@served_options
@explain_option
@output_option
@click.pass_context
@example("resourceserver check\nresourceserver check --tools mypackage.mytools\nresourceserver check --explain")
def check(ctx: click.Context, tools: str | None, upstream: Path | None, explain: bool, output: str) -> None:
    """Check settings, address, catalogue, database, audit keys, limits, and the keys and metadata of the issuer.

    Exit code 1 if a check fails. The server also starts without the issuer's keys, and waits for them; and without the
    server of RESOURCESERVER_LIMITS_URL, and applies its limits in each worker. An address in use is not a failure,
    because the server itself may be running.
    """
    check_server(
        ctx,
        Settings,
        Database,
        _steps,
        explain=explain,
        output=output,
        expected=(FetchFailed, InvalidKeySet, Refusal),
        **given({"tools": tools, "upstream": upstream}),
    )


def _steps(settings: Settings, database: Database) -> Sequence[Step]:
    def catalogue() -> str:
        found = load_served(settings)
        database.catalogue_schema = load_schema(found)
        read_resources(found, settings.resource)
        number = len(found.tools) + len(found.withheld)
        return f"{number} tools; a 401 asks for: {' '.join(sorted(baseline_scopes(settings, found)))}"

    def issuer_keys() -> str:
        unused: list[str] = []
        count = len(parse_key_set(anyio.run(_fetch, settings, _well_known(settings, "jwks.json")), unused.append))
        return "; not used: ".join([f"{count} {'key' if count == 1 else 'keys'} of {settings.issuer}", *unused])

    def issuer_metadata() -> str:
        url = _well_known(settings, "oauth-authorization-server")
        _require_issuer(anyio.run(_fetch, settings, url), url, settings.issuer)
        return f"names the issuer {settings.issuer}"

    return (
        *address_steps(settings),
        ("catalogue", catalogue),
        *_upstream_steps(settings),
        *database_steps(settings, database),
        audit_keys_step(settings.audit_keys),
        limits_step(settings),
        *_internal_address_steps(settings),
        ("issuer's keys", issuer_keys),
        ("issuer's metadata", issuer_metadata),
    )


def _upstream_steps(settings: Settings) -> Sequence[Step]:
    """Ask the upstream for its tools, and compare them with the policy."""
    if (path := settings.upstream) is None:
        return ()

    def upstream() -> str:
        # These import the MCP SDK, which the check of a module's catalogue does not need.
        from gatehouse.resourceserver.cli.policy_inputs import list_tools  # noqa: PLC0415
        from gatehouse.resourceserver.upstream.drift import ToolState, compare  # noqa: PLC0415

        policy = load_policy(path)
        states = compare(policy, list(list_tools(policy.upstream).values()))
        numbers = Counter(state for state in states.values() if state is not ToolState.SERVED)
        served = len(states) - numbers.total()
        others = "".join(f", {number} {state}" for state, number in sorted(numbers.items()))
        return f"{served} tools as confirmed{others}{'; see: resourceserver policy check' if others else ''}"

    return (("upstream", upstream),)


def _internal_address_steps(settings: Settings) -> Sequence[Step]:
    """Name an internal address of the issuer, and what plain http to it means."""
    address = settings.issuer_internal_url
    if address is None:
        return ()
    risk = "" if is_protected_transport(address) else ", without TLS: who controls that network can forge tokens"
    return (("issuer's internal address", lambda: f"{address}{risk}"),)


def _well_known(settings: Settings, document: str) -> str:
    return settings.address_at_issuer(f"{settings.issuer}/.well-known/{document}")


async def _fetch(settings: Settings, url: str) -> bytes:
    async with create_http(settings) as client:
        fetched = await http_fetch(client, url)(None)
    return fetched.document if fetched is not None else b""


def _require_issuer(metadata: bytes, url: str, issuer: str) -> None:
    """Check that metadata is the issuer's own (RFC 8414, section 3.3): with another issuer, no token is valid.

    Raises:
        FetchFailed: it is not.
    """
    try:
        members = parse_json(metadata)
    except InvalidJson as error:
        raise FetchFailed(f"{url}: {error}") from None
    found = members.get("issuer") if isinstance(members, dict) else None
    if found != issuer:
        raise FetchFailed(
            f"{url} names the issuer {quoted(str(found))}, not {issuer}: set RESOURCESERVER_ISSUER to exactly the "
            "issuer of the authorization server (AUTHSERVER_ISSUER)"
        )
