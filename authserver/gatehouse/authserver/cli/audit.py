"""`authserver audit`: what happened, and who was refused what, why."""

from collections.abc import Iterator
from contextlib import contextmanager

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.db.models import audit_tables
from gatehouse.shared.service.audit.command import audit_group
from gatehouse.shared.service.audit.events import AUTHSERVER_ACTIONS
from gatehouse.shared.service.audit.log import AuditLog, OpenLog


@contextmanager
def _open(ctx: click.Context, /, *, patient: bool = False) -> Iterator[OpenLog]:
    with open_installation(ctx, patient=patient) as installation:
        yield OpenLog(installation.database, installation.settings.audit_keys, installation.admin)


audit = audit_group(AuditLog("authserver", audit_tables, AUTHSERVER_ACTIONS, _open))
