"""`authserver check`: everything that would stop the server from starting, at once."""

from collections.abc import Sequence

import click

from gatehouse.authserver.cli.installation import Installation
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import FILE_NAME
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit_rows import AuditRows
from gatehouse.shared.service.check_command import address_steps, check_server, database_steps, explain_option
from gatehouse.shared.service.checks import Step
from gatehouse.shared.service.cli import example, output_option


@click.command()
@explain_option
@output_option
@click.pass_context
@example("authserver check\nauthserver check --explain")
def check(ctx: click.Context, explain: bool, output: str) -> None:
    """Check settings, address, sealing key, database and signing key. Exit code 1 if the server would not start.

    An address in use is not a failure, because the server itself may be running.
    """
    check_server(ctx, Settings, Database, _steps, explain=explain, output=output)


def _steps(settings: Settings, database: Database) -> Sequence[Step]:
    installation = Installation(settings, database, Administrator(AuditRows(audit_event)))

    def sealing_key() -> str:
        installation.sealing_key()
        return "in the environment" if settings.sealing_key is not None else str(settings.keys_dir / FILE_NAME)

    def signing_key() -> str:
        database.require_current()
        return f"{settings.signing_algorithm} {installation.keys().signing_key.kid}"

    return (
        *address_steps(settings),
        ("sealing key", sealing_key),
        *database_steps(settings, database),
        ("signing key", signing_key),
    )
