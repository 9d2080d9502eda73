"""`authserver audit`: what happened, and who was refused what, why."""

import click

from gatehouse.authserver.cli.session import admin_session
from gatehouse.authserver.store.models import audit_event
from gatehouse.shared.audit import find_events
from gatehouse.shared.command_line import AUDIT_COLUMNS, audit_records, example, output_option, print_records


@click.command()
@click.option(
    "--client", metavar="CLIENT_ID", help="Only what this client did or was refused, and what was done to it."
)
@click.option("--jti", help="Only what concerns this token.")
@click.option("--request", "request_id", metavar="REQUEST_ID", help="Only this request.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, show_default=True, help="The newest so many.")
@output_option
@click.pass_context
@example("authserver audit --limit 10\nauthserver audit --client agent_0123456789abcdef0123 --output json")
def audit(
    ctx: click.Context, client: str | None, jti: str | None, request_id: str | None, limit: int, output: str
) -> None:
    """Show tokens issued and refused, and changes by admins, oldest first."""
    with admin_session(ctx) as session, session.database.read() as transaction:
        rows = find_events(
            transaction.connection(), audit_event, client=client, jti=jti, request_id=request_id, limit=limit
        )
    print_records(audit_records(rows), AUDIT_COLUMNS, output)
