"""The `check` command of both servers: settings first, then the steps of each server."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click

from gatehouse.shared.protocol.clock import Clock, system_clock
from gatehouse.shared.service.addresses import in_use
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.checks import Check, Step, passed, run_checks
from gatehouse.shared.service.cli import Refusal, env_file_of
from gatehouse.shared.service.database import shown_url
from gatehouse.shared.service.failures import EXPECTED_FAILURES
from gatehouse.shared.service.heartbeat import MAX_AGE, SERVER, last_heartbeat, write_heartbeat
from gatehouse.shared.service.migrations import MigratedDatabase
from gatehouse.shared.service.output import print_records
from gatehouse.shared.service.postgresql import is_behind_pooler
from gatehouse.shared.service.settings import InvalidSettings, ServerSettings
from gatehouse.shared.service.settings_reading import explain_settings, load_settings
from gatehouse.shared.service.shared_counts import ping, shown_limits_url

SettingsT = TypeVar("SettingsT", bound=ServerSettings)
DatabaseT = TypeVar("DatabaseT", bound=MigratedDatabase)

explain_option = click.option(
    "--explain", is_flag=True, help="List every setting with its value, the source of the value, and a description."
)


def check_server(
    ctx: click.Context,
    settings_class: type[SettingsT],
    database_class: type[DatabaseT],
    steps: Callable[[SettingsT, DatabaseT], Sequence[Step]],
    *,
    output: str,
    explain: bool,
    expected: tuple[type[Exception], ...] = (),
    **options: Any,
) -> None:
    """Carry out a server's `check`: its settings, then the steps. Exit code 1 unless all pass.

    With `explain`, print the settings instead. `options` are the command's own and override settings.
    """
    if explain:
        columns = ("setting", "value", "source", "default", "description")
        print_records(explain_settings(settings_class, env_file_of(ctx)), columns, output)
        return
    try:
        settings = load_settings(settings_class, env_file_of(ctx), **options)
    except InvalidSettings as error:
        checks = [Check("settings", "failed", problem) for problem in str(error).splitlines()]
    else:
        # Log lines about the same failures would appear next to the table.
        logging.getLogger("gatehouse").addHandler(logging.NullHandler())
        with database_class(settings.database) as database:
            made = run_checks(steps(settings, database), (*EXPECTED_FAILURES, *expected))
        checks = [Check("settings", "ok"), *made]
    print_records([check.record() for check in checks], ("check", "outcome", "detail"), output)
    if not passed(checks):
        ctx.exit(1)


def address_steps(settings: ServerSettings) -> tuple[Step, ...]:
    """Return the checks of the addresses that a server listens on. One in use is not a failure: the server may run."""

    def check(bind: str, setting: str) -> str:
        return (
            f"{bind} is in use: by this server, if it runs" if in_use(bind, f"{setting}={bind}") else f"{bind} is free"
        )

    steps: tuple[Step, ...] = (("address", partial(check, settings.bind, settings.variable("bind"))),)
    if settings.metrics_bind is not None:
        variable = settings.variable("metrics_bind")
        steps += (("metrics address", partial(check, settings.metrics_bind, variable)),)
    return steps


def audit_keys_step(path: Path) -> Step:
    """Return the check of the audit key file."""
    return "audit key file", lambda: f"{path}; the current key is {AuditKeys.read(path).kid}"


def limits_step(settings: ServerSettings) -> Step:
    """Return the check of where requests are counted for the limits."""

    def check() -> str:
        url, workers = settings.limits_url, settings.workers
        if url is None:
            share = "the whole of each limit" if workers == 1 else f"1/{workers} of each limit"
            return f"counted in each process: a worker allows {share}"
        if (problem := ping(url)) is not None:
            raise Refusal(
                f"{shown_limits_url(url)} does not answer ({problem}). Each worker allows 1/{workers} of the limits."
            )
        return f"counted at {shown_limits_url(url)} for all workers and nodes"

    return "limits", check


def database_steps(
    settings: ServerSettings, database: MigratedDatabase, clock: Clock = system_clock
) -> tuple[Step, ...]:
    """Return the checks of the database: what it must allow, and what the URL says about a connection pooler.

    It must have a schema that this version works with and accept writes, and a running server must have written to it
    recently.
    """

    def check() -> str:
        database.require_current()
        shown = shown_url(database.url)
        if database.is_ahead:
            shown += ", with the schema of the next version"
        now = clock()
        with database.engine.begin() as connection:
            write_heartbeat(connection, "check", now)
            last = last_heartbeat(connection, SERVER)
        if last is None:
            return f"{shown}; no server has used it yet"
        written = f"the last heartbeat of a server is {max(0, int(now) - last)} s old"
        if now - last > MAX_AGE and _in_use(settings):
            raise Refusal(
                f"A process listens on {settings.bind}, and {written}. If it is this server, see its log; if it is "
                "another program, stop it or change the address."
            )
        return f"{shown}; {written}"

    if not is_behind_pooler(database.url):
        return (("database", check),)
    return ("database", check), ("connection pooler", lambda: "pgbouncer=true: prepared statements are off")


def _in_use(settings: ServerSettings) -> bool:
    return in_use(settings.bind, f"{settings.variable('bind')}={settings.bind}")
