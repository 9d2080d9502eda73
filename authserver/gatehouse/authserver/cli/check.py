"""`authserver check`: everything that would stop the server from starting, at once."""

import os
from collections.abc import Sequence

import click

from gatehouse.authserver.backup.restores import RestoreMark
from gatehouse.authserver.cli.installation import Installation
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import audit_event
from gatehouse.authserver.keys.encryption import FILE_NAME
from gatehouse.authserver.settings import Settings
from gatehouse.authserver.workloads.key_state import key_problem, key_warning
from gatehouse.authserver.workloads.registry import TrustedIssuer, load_issuers, shared_keys
from gatehouse.shared.service.administrator import CommandRefused, administrator
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


@click.command()
@explain_option
@output_option
@click.pass_context
@example("authserver check\nauthserver check --explain")
def check(ctx: click.Context, explain: bool, output: str) -> None:
    """Check settings, address, keys, database, limits and the keys of trusted issuers.

    Exit code 1 if a check fails. The server also starts without the server of AUTHSERVER_LIMITS_URL, and applies its
    limits in each worker; and without the keys of a trusted issuer, whose tokens it then refuses. An address in use is
    not a failure, because the server itself may be running.
    """
    check_server(ctx, Settings, Database, _steps, explain=explain, output=output)


def _steps(settings: Settings, database: Database) -> Sequence[Step]:
    installation = Installation(settings, database, administrator(audit_event, settings.audit_keys))

    def sealing_key() -> str:
        installation.sealing_key()
        return "in the environment" if settings.sealing_key is not None else str(settings.keys_dir / FILE_NAME)

    def signing_key() -> str:
        database.require_current()
        return f"{settings.signing_algorithm} {installation.keys().signing_key.kid}"

    def restored() -> str:
        database.require_current()
        mark = RestoreMark(database, settings)
        try:
            mark.require_no_restore()
        except CommandRefused as refused:
            raise Refusal(str(refused)) from None
        if not os.access(mark.path if mark.path.exists() else mark.path.parent, os.W_OK):
            return f"{mark.path} cannot be written by this user. If the server cannot either, no restore is noticed"
        if mark.is_beside_database:
            return (
                f"{mark.path} is in the folder of the database. A copy of the folder restores both, and is not "
                "noticed. Name a file elsewhere in AUTHSERVER_RESTORE_MARK"
            )
        return f"the database holds the newest event in {mark.path}" if mark.path.exists() else "no event seen yet"

    def trusted_issuers() -> str:
        database.require_current()
        with database.read() as session:
            return _describe_issuers(load_issuers(session.connection()), installation.admin.now())

    return (
        *address_steps(settings),
        ("sealing key", sealing_key),
        audit_keys_step(settings.audit_keys),
        *database_steps(settings, database),
        ("restored backup", restored),
        limits_step(settings),
        ("signing key", signing_key),
        ("trusted issuers", trusted_issuers),
    )


def _describe_issuers(issuers: Sequence[TrustedIssuer], now: int) -> str:
    """Return the state of the keys of all enabled issuers. Raises Refusal if one has none that can be used."""
    enabled = [issuer for issuer in issuers if not issuer.disabled]
    shared = shared_keys(enabled)
    notes = [f"{issuer.name}: {note}" for issuer in enabled if (note := key_warning(issuer, now)) is not None]
    problems = [
        f"{issuer.name}: {problem}" for issuer in enabled if (problem := key_problem(issuer, shared, now)) is not None
    ]
    if problems:
        raise Refusal(f"{'; '.join(problems)}. See: authserver issuer list")
    return "; ".join([f"{len(enabled)} enabled, {len(issuers) - len(enabled)} disabled", *notes])
