"""`resourceserver workspace`: the tenants."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from gatehouse.directory.errors import DirectoryError
from gatehouse.directory.migrations import SCHEMA
from gatehouse.directory.workspaces import Workspace, create_workspace, list_workspaces
from gatehouse.resourceserver.cli.installation import open_database, settings_of
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.administrator import administrator
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.cli import Refusal, example, output_option
from gatehouse.shared.service.output import print_record, print_records


@click.group()
@example("resourceserver workspace create --name acme")
def workspace() -> None:
    """Manage workspaces, the tenants. A client acts in the workspace that its workspace_id claim names."""


def _record(created: Workspace) -> dict[str, Any]:
    return {
        "workspace_id": created.workspace_id,
        "name": created.name,
        "created_at": iso_time(created.created_at),
    }


@contextmanager
def _directory(ctx: click.Context) -> Iterator[Database]:
    """Open the database, and turn a DirectoryError into a Refusal."""
    with open_database(settings_of(ctx), SCHEMA) as database:
        try:
            yield database
        except DirectoryError as error:
            raise Refusal(str(error)) from None


@workspace.command()
@click.option("--name", required=True, help="Unique display name.")
@output_option
@click.pass_context
@example("resourceserver workspace create --name acme")
def create(ctx: click.Context, name: str, output: str) -> None:
    """Create a workspace. Assign it to a client with: authserver client create --claim workspace_id=..."""
    admin = administrator(audit_event, settings_of(ctx).audit_keys)
    with _directory(ctx) as database, database.write() as session:
        created = create_workspace(session, name, admin.clock())
        admin.record(session, AuditAction.WORKSPACE_CREATE, created.workspace_id)
    print_record(_record(created), output)


@workspace.command("list")
@output_option
@click.pass_context
@example("resourceserver workspace list")
def list_(ctx: click.Context, output: str) -> None:
    """List all workspaces, the oldest first."""
    with _directory(ctx) as database, database.read() as session:
        records = [_record(known) for known in list_workspaces(session)]
    print_records(records, ("workspace_id", "name", "created_at"), output)
