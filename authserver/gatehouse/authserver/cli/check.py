"""`authserver check`: everything that keeps the server from starting, at once."""

import logging

import click

from gatehouse.authserver.cli.installation import Installation, settings_of
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import FILE_NAME
from gatehouse.authserver.settings import Settings
from gatehouse.shared.service.addresses import describe_address
from gatehouse.shared.service.administrator import Administrator
from gatehouse.shared.service.audit import AuditRows
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
@explain_option
@output_option
@click.pass_context
@example("authserver check\nauthserver check --explain")
def check(ctx: click.Context, explain: bool, output: str) -> None:
    """Check settings, address, sealing key, database and signing key. Exit code 1 when the server would not start.

    An address in use is no failure, because the server itself may be running.
    """
    if explain:
        columns = ("setting", "value", "source", "default", "description")
        print_records(explain_settings(Settings, env_file_of(ctx)), columns, output)
        return
    settings, checks = check_settings(lambda: settings_of(ctx))
    print_checks(ctx, checks if settings is None else [*checks, *_check_installation(settings)], output)


def _check_installation(settings: Settings) -> list[Check]:
    database = Database(settings.database)
    installation = Installation(settings, database, Administrator(AuditRows(audit_event)))

    def sealing_key() -> str:
        installation.sealing_key()
        return "in the environment" if settings.sealing_key is not None else str(settings.keys_dir / FILE_NAME)

    def schema() -> str:
        database.require_current()
        return shown_url(settings.database)

    def signing_key() -> str:
        database.require_current()
        return f"{settings.signing_algorithm} {installation.keys().signing_key.kid}"

    def address() -> str:
        return describe_address(settings.bind, f"AUTHSERVER_BIND={settings.bind}")

    # What these parts log of the same failures would stand beside the table.
    logging.getLogger("gatehouse").addHandler(logging.NullHandler())
    try:
        steps = (("address", address), ("sealing key", sealing_key), ("database", schema), ("signing key", signing_key))
        return run_checks(steps, EXPECTED_FAILURES)
    finally:
        database.close()
