"""`resourceserver audit`: prints the audit log."""

from typing import Any

import click

from gatehouse.resourceserver.cli.installation import open_database, settings_of
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.shared.service.audit import RESOURCE_SERVER_ACTIONS
from gatehouse.shared.service.audit_command import audit_options, print_audit
from gatehouse.shared.service.cli import example


@click.command()
@audit_options
@click.pass_context
@example("resourceserver audit --limit 10\nresourceserver audit --client agent_0123456789abcdef0123 --output json")
def audit(ctx: click.Context, /, **options: Any) -> None:
    """Show tools called, resources read, calls refused, and changes by admins, oldest first."""
    with open_database(settings_of(ctx)) as database, database.read() as session:
        print_audit(session.connection(), audit_event, actions=RESOURCE_SERVER_ACTIONS, **options)
