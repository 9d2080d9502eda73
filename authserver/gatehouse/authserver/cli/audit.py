"""`authserver audit`: what happened, and who was refused what, why."""

from typing import Any

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.db.models import audit_event
from gatehouse.shared.service.audit import AUTHSERVER_ACTIONS
from gatehouse.shared.service.audit_command import audit_options, print_audit
from gatehouse.shared.service.cli import example


@click.command()
@audit_options
@click.pass_context
@example("authserver audit --limit 10\nauthserver audit --client agent_0123456789abcdef0123 --output json")
def audit(ctx: click.Context, /, **options: Any) -> None:
    """Show tokens issued and refused, and changes by admins, oldest first."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        print_audit(session.connection(), audit_event, actions=AUTHSERVER_ACTIONS, **options)
