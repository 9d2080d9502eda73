"""`resourceserver audit`: what clients called, and what was refused, why."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gatehouse.resourceserver.cli.installation import open_database, settings_of
from gatehouse.resourceserver.db.models import audit_event, audit_tables
from gatehouse.shared.service.administrator import administrator
from gatehouse.shared.service.audit.command import audit_group
from gatehouse.shared.service.audit.events import RESOURCE_SERVER_ACTIONS
from gatehouse.shared.service.audit.log import AuditLog, OpenLog


@contextmanager
def _open(ctx: click.Context, /, *, patient: bool = False) -> Iterator[OpenLog]:
    settings = settings_of(ctx)
    with open_database(settings, patient=patient) as database:
        yield OpenLog(database, settings.audit_keys, administrator(audit_event, settings.audit_keys))


audit = audit_group(AuditLog("resourceserver", audit_tables, RESOURCE_SERVER_ACTIONS, _open))
