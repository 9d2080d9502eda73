"""`resourceserver audit`: who called what, and who was refused what, why."""

import click

from gatehouse.resource.cli.session import admin_database, settings_of
from gatehouse.resource.store.models import audit_event
from gatehouse.shared.audit import find_events
from gatehouse.shared.command_line import AUDIT_COLUMNS, audit_records, example, output_option, print_records


@click.command()
@click.option(
    "--client", metavar="CLIENT_ID", help="Only what this client did or was refused, and what was done to it."
)
@click.option("--jti", help="Only what concerns this token; the authorization server's trail names it too.")
@click.option("--request", "request_id", metavar="REQUEST_ID", help="Only this request.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many.")
@output_option
@click.pass_context
@example("resourceserver audit --limit 10\nresourceserver audit --client agent_0123456789abcdef0123 --output json")
def audit(
    ctx: click.Context, client: str | None, jti: str | None, request_id: str | None, limit: int, output: str
) -> None:
    """Show tools called, calls refused, and changes by admins, oldest first."""
    with admin_database(settings_of(ctx)) as database, database.session() as session:
        rows = find_events(
            session.connection(), audit_event, client=client, jti=jti, request_id=request_id, limit=limit
        )
    print_records(audit_records(rows), AUDIT_COLUMNS, output)
