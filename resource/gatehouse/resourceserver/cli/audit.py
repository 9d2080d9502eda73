"""`resourceserver audit`: what clients called, and what was refused, why."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gatehouse.resourceserver.cli.installation import open_database, settings_of
from gatehouse.resourceserver.db.database import Database
from gatehouse.resourceserver.db.models import audit_event
from gatehouse.shared.service.audit import RESOURCE_SERVER_ACTIONS
from gatehouse.shared.service.audit_command import audit_group
from gatehouse.shared.service.audit_log import AuditLog


@contextmanager
def _open(ctx: click.Context, /, *, patient: bool = False) -> Iterator[Database]:
    with open_database(settings_of(ctx), patient=patient) as database:
        yield database


audit = audit_group(AuditLog("resourceserver", audit_event, RESOURCE_SERVER_ACTIONS, _open))
