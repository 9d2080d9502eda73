"""`authserver client explain` and `authserver access-matrix`: who can call which tool, and why not."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.client_record import rule_record
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.clients.registry import WORKLOAD_IDENTITY, Client, existing_client, load_clients
from gatehouse.authserver.grants.entitlements import (
    Obstacle,
    ScopeAccess,
    Served,
    ToolAccess,
    obstacles,
    scope_accesses,
    tool_access,
)
from gatehouse.authserver.grants.workload_trust import trust_state
from gatehouse.authserver.resources.catalogue import parse_catalogue
from gatehouse.authserver.resources.registry import load_resource
from gatehouse.authserver.workloads.registry import issuers_of_rules, load_issuers, rules_of_client
from gatehouse.shared.protocol.redaction import printable
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cli import example, output_option
from gatehouse.shared.service.output import print_csv, print_record, print_records, print_table

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_FILE_HELP = "The output of `resourceserver tools --output json`, or a policy file (TOML)."
_RESOURCE_HELP = "The resource that --catalogue is for, if the file does not name one."


@click.command()
@click.argument("client_id")
@click.option("--catalogue", "file", type=_FILE, help=_FILE_HELP)
@click.option("--resource", metavar="URL", help=_RESOURCE_HELP)
@click.option("--tool", metavar="NAME", help="Only this tool of the catalogue. Exit code 1 if it cannot be called.")
@output_option
@click.pass_context
@example(
    "authserver client explain agent_0123456789abcdef0123\n"
    "authserver client explain agent_0123456789abcdef0123 --tool create_organization --catalogue catalogue.json\n"
    "authserver client explain agent_0123456789abcdef0123 --catalogue policy.toml --resource https://host/mcp"
)
def explain(
    ctx: click.Context, client_id: str, file: Path | None, resource: str | None, tool: str | None, output: str
) -> None:
    """Show what a client can use, and how to allow the rest.

    Lists each scope and tool with the grant that allows it, or the command that would. The tools come from
    --catalogue. Limits that depend on a tool's arguments or the client's workspace are not considered.

    For a workload_identity client, also lists its trust rules, and says why if no platform token is accepted.
    """
    if file is None and (tool is not None or resource is not None):
        raise click.UsageError("--tool and --resource need --catalogue.")
    with open_installation(ctx) as installation, installation.database.read() as session:
        client = existing_client(session, client_id).as_of(installation.admin.now())
        rules, issuers = rules_of_client(session.connection(), client_id), load_issuers(session.connection())
        served = _load_served(session, file, resource) if file is not None else None
        names = _chosen(served, [tool] if tool else []) if served else []
    trust = trust_state(client_id, {owned.issuer for owned in rules}, issuers, installation.admin.now())
    tools = [tool_access(client, served, name, trust.obstacles) for name in names] if served else []
    blocking, warnings = obstacles(client, trust.obstacles), [*trust.warnings, *_warnings(served)]
    is_workload = client.token_endpoint_auth_method == WORKLOAD_IDENTITY
    listed = [rule_record(owned) for owned in rules] if is_workload else None
    if output == "json":
        print_record(_explanation(client, blocking, warnings, listed, tools), output)
    else:
        _print_explanation(client, blocking, warnings, listed, tools)
    if tool is not None and not tools[0].allowed:
        ctx.exit(1)


@click.command("access-matrix")
@click.option("--catalogue", "file", type=_FILE, required=True, help=_FILE_HELP)
@click.option("--resource", metavar="URL", help=_RESOURCE_HELP)
@click.option("--tool", "chosen", multiple=True, metavar="NAME", help="Only this tool; repeatable.")
@click.option(
    "--output", type=click.Choice(["table", "json", "csv"]), default="table", show_default=True, help="Output format."
)
@click.pass_context
@example(
    "authserver access-matrix --catalogue catalogue.json\n"
    "authserver access-matrix --catalogue catalogue.json --tool create_organization --output csv > access.csv\n"
    "authserver access-matrix --catalogue policy.toml --resource https://host/mcp"
)
def access_matrix(ctx: click.Context, file: Path, resource: str | None, chosen: tuple[str, ...], output: str) -> None:
    """Show which client can call which tool today."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        served = _load_served(session, file, resource)
        names = _chosen(served, chosen)
        now = installation.admin.now()
        clients = [client.as_of(now) for client in load_clients(session.connection())]
        named, issuers = issuers_of_rules(session.connection()), load_issuers(session.connection())
    rows = []
    for client in clients:
        untrusted = trust_state(client.client_id, named.get(client.client_id, ()), issuers, now).obstacles
        tools = [tool_access(client, served, name, untrusted) for name in names]
        rows.append((client, obstacles(client, untrusted), tools))
    warnings = _warnings(served)
    if output == "json":
        records = [_matrix_record(*row) for row in rows]
        print_record(
            {"resource": served.catalogue.resource, "warnings": _records(warnings), "clients": records}, output
        )
        return
    for warning in warnings:
        click.echo(_line("warning", warning), err=output == "csv")
    columns = ["client_name", "client_id", "obstacle", *names]
    values = [
        [
            client.client_name,
            client.client_id,
            "; ".join(obstacle.reason for obstacle in blocking) or None,
            *(tool.allowed for tool in tools),
        ]
        for client, blocking, tools in rows
    ]
    if output == "csv":
        print_csv(columns, values)
    else:
        print_table(columns, values)


def _load_served(session: Session, file: Path, resource: str | None) -> Served:
    catalogue = parse_catalogue(file.read_bytes(), resource)
    if not catalogue.tools:
        raise CommandRefused("The catalogue file has no tools. Write it with: resourceserver tools --output json")
    return Served(catalogue, load_resource(session, catalogue.resource), str(file))


def _chosen(served: Served, names: Sequence[str]) -> list[str]:
    """Return the named tools, in their order, or every tool of the catalogue."""
    tools = served.catalogue.tools
    for name in names:
        if name not in tools:
            raise CommandRefused(f"The catalogue has no tool {name}. Its tools are: {', '.join(tools)}.")
    return list(dict.fromkeys(names)) or list(tools)


def _warnings(served: Served | None) -> list[Obstacle]:
    drift = served.drift() if served is not None else None
    return [drift] if drift is not None else []


def _records(found: Sequence[Obstacle]) -> list[dict[str, str | None]]:
    return [asdict(obstacle) for obstacle in found]


def _explanation(
    client: Client,
    blocking: Sequence[Obstacle],
    warnings: Sequence[Obstacle],
    rules: Sequence[dict[str, Any]] | None,
    tools: Sequence[ToolAccess],
) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "client_name": client.client_name,
        "obstacles": _records(blocking),
        "warnings": _records(warnings),
        "claims": dict(client.claims),
        "scopes": [
            {"resource": access.resource, "scope": access.scope, "granted": access.granted, "by": sorted(access.by)}
            for access in scope_accesses(client)
        ],
        **({} if rules is None else {"trust_rules": rules}),
        "tools": [_tool_record(access) for access in tools],
    }


def _tool_record(access: ToolAccess) -> dict[str, Any]:
    return {
        "tool": access.tool,
        "allowed": access.allowed,
        "needs": sorted(access.needs),
        "through": sorted(access.through),
        "missing": sorted(access.missing),
        "reason": "; ".join(access.reasons),
        "remediation": access.remediation,
    }


def _matrix_record(client: Client, blocking: Sequence[Obstacle], tools: Sequence[ToolAccess]) -> dict[str, Any]:
    return {
        "client_id": client.client_id,
        "client_name": client.client_name,
        "obstacles": _records(blocking),
        "tools": {access.tool: access.allowed for access in tools},
    }


def _print_explanation(
    client: Client,
    blocking: Sequence[Obstacle],
    warnings: Sequence[Obstacle],
    rules: Sequence[dict[str, Any]] | None,
    tools: Sequence[ToolAccess],
) -> None:
    """Print what blocks every call first, and the commands last, each on its own line so that it can be pasted."""
    for obstacle in blocking:
        click.echo(_line("no token", obstacle))
    for warning in warnings:
        click.echo(_line("warning", warning))
    print_record(
        {"client_id": client.client_id, "client_name": client.client_name, "claims": dict(client.claims)}, "table"
    )
    scopes = scope_accesses(client)
    click.echo()
    if scopes:
        print_table(("resource", "scope", "from"), [(scope.resource, scope.scope, _origin(scope)) for scope in scopes])
    else:
        click.echo("No grants. Add one with: authserver client grant add")
    if rules:
        click.echo()
        print_records(rules, ("rule_id", "issuer", "claims", "created_at"), "table")
    if not tools:
        return
    click.echo()
    print_table(
        ("tool", "allowed", "needs", "through", "reason"),
        [
            (
                access.tool,
                access.allowed,
                sorted(access.needs) or "(any valid token)",
                sorted(access.through),
                "; ".join(access.reasons) or None,
            )
            for access in tools
        ],
    )
    for access in tools:
        if access.remediation:
            click.echo(f"\nto allow {access.tool}:\n  {printable(access.remediation)}")


def _origin(access: ScopeAccess) -> str:
    origins = ["granted"] if access.granted else []
    return ", ".join([*origins, *(f"implied by {scope}" for scope in sorted(access.by))])


def _line(word: str, obstacle: Obstacle) -> str:
    then = f"Run: {obstacle.remediation}" if obstacle.remediation else obstacle.next_step
    return printable(f"{word}: {obstacle.reason}." + (f" {then}" if then else ""))
