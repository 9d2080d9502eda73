"""`authserver sealing-key`: the key that encrypts signing keys and peppers in the database."""

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.keys.encryption import FILE_NAME, NEXT_FILE_NAME, generate_sealing_key
from gatehouse.authserver.keys.sealing_key_rotation import prepare_sealing_key, rotate_sealing_key
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_record


@click.group("sealing-key")
@example("authserver sealing-key rotate")
def sealing_key() -> None:
    """Rotate the key that encrypts signing keys and peppers in the database."""


@sealing_key.command()
@click.option("--prepare", is_flag=True, help="Only create the new sealing key, to copy it to every node first.")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver sealing-key rotate --prepare\nauthserver sealing-key rotate --yes")
def rotate(ctx: click.Context, prepare: bool, yes: bool, output: str) -> None:
    """Encrypt the signing keys and peppers with a new sealing key. Secrets, tokens and keys stay valid.

    \b
    One node, with the key in a file: run the command. Running servers load the new key automatically.
    Several nodes, with the key in files:
      1. authserver sealing-key rotate --prepare; copy sealing.key.next into AUTHSERVER_KEYS_DIR of every node
      2. authserver sealing-key rotate, on one node
      3. mv sealing.key.next sealing.key, on every other node
    With the key in AUTHSERVER_SEALING_KEY, or in the file that AUTHSERVER_SEALING_KEY_FILE names:
      1. authserver sealing-key rotate --prepare prints a new key
      2. AUTHSERVER_SEALING_KEY=OLD,NEW on every node, and restart one after the other
      3. authserver sealing-key rotate, with the same variable
      4. AUTHSERVER_SEALING_KEY=NEW on every node, and restart

    If the command is interrupted, run it again. Older backups need the old sealing key: keep it with them.
    """  # noqa: D301 - click reads the control character
    with open_installation(ctx) as installation:
        settings = installation.settings
        # A lost sealing key is reported, with its remediation, before anything is changed.
        installation.sealing_key()
        if prepare:
            if settings.sealing_key is not None:
                print_record({"next_sealing_key": generate_sealing_key()}, output)
                return
            created = prepare_sealing_key(settings)
            path = str(settings.keys_dir / NEXT_FILE_NAME)
            print_record({"next_sealing_key": path, "outcome": "created" if created else "present"}, output)
            return
        confirm("Replace the sealing key? Backups made before need the old one.", yes=yes)
        outcome = rotate_sealing_key(settings, installation.database, installation.admin)
    where = "the second key in AUTHSERVER_SEALING_KEY" if settings.sealing_key else str(settings.keys_dir / FILE_NAME)
    record = {
        "sealing_key": where,
        "signing_keys": outcome.signing_keys,
        "peppers": outcome.peppers,
        "undecryptable": list(outcome.undecryptable),
    }
    print_record(record, output)
    if outcome.undecryptable:
        click.echo("The undecryptable rows were left unchanged. See: authserver key list", err=True)
