"""`authserver restore`: the decision to use a database that was restored from a backup."""

import click

from gatehouse.authserver.backup.restores import Restore, RestoreMark, accept_restore
from gatehouse.authserver.cli.installation import open_installation
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_record


@click.group()
@example("authserver restore accept --yes")
def restore() -> None:
    """Use a database that was restored from a backup."""


@restore.command()
@click.option("--disable-clients", is_flag=True, help="Also disable every client. Enable each when it is reviewed.")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver restore accept --yes\nauthserver restore accept --disable-clients --yes")
def accept(ctx: click.Context, disable_clients: bool, yes: bool, output: str) -> None:
    """Revoke every token, and accept a restored database.

    The server then starts with it.

    A backup does not contain what was revoked after it was made. This command revokes all signing keys, and with them
    all tokens. It cannot know which clients and trusted issuers were disabled, and which secrets, keys, trust rules,
    grants and resource credentials were revoked: repeat those changes first, from the copy of the audit log in your log
    collector. Without such a copy, use --disable-clients.

    One run is enough for all nodes.
    """
    with open_installation(ctx, patient=True) as installation:
        mark = RestoreMark(installation.database, installation.settings)
        found = _find(mark)
        if found is not None:
            click.echo(str(found), err=True)
        confirm("Revoke every token, and use this database from now on?", yes=yes)
        rotation = installation.rotation(installation.admin.actor)
        with installation.database.write() as session:
            accepted = accept_restore(session, installation.admin, rotation, found, disable_clients=disable_clients)
        mark.replace()
        active = installation.keys().signing_key.kid
    record = {
        "revoked_keys": list(accepted.revoked_keys),
        "signing_key": active,
        "disabled_clients": accepted.disabled_clients,
    }
    print_record(record, output)


def _find(mark: RestoreMark) -> Restore | None:
    """Return what is missing; None also if the restore mark cannot be read, because then nothing tells."""
    try:
        return mark.find_restore()
    except CommandRefused:
        return None
