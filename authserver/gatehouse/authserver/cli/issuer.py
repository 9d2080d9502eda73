"""`authserver issuer`: trust platforms whose tokens authenticate workloads."""

from pathlib import Path

import click

from gatehouse.authserver.cli.credentials import WITHIN_A_SECOND
from gatehouse.authserver.cli.installation import open_installation, settings_of
from gatehouse.authserver.cli.issuer_add import add
from gatehouse.authserver.cli.issuer_options import FILE, ONE_TIME, parse_lifetime, read_jwks
from gatehouse.authserver.cli.issuer_record import issuer_record, print_issuer, stored_record
from gatehouse.authserver.workloads.issuer_update import IssuerUpdate, last_repetition, update_issuer
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.presets import PRESETS
from gatehouse.authserver.workloads.registration import existing_issuer, remove_issuer, set_issuer_disabled
from gatehouse.authserver.workloads.registry import load_issuers, rules_of_issuer, shared_keys
from gatehouse.shared.protocol.clock import iso_time
from gatehouse.shared.service.cli import confirm, example, output_option
from gatehouse.shared.service.output import print_record, print_records

_COLUMNS = ("name", "kind", "issuer", "disabled", "keys_from", "keys_at", "keys_problem")

_STAY_VALID = (
    "Tokens that were already issued stay valid until they expire. To revoke them, run: authserver token revoke"
    " --client CLIENT_ID"
)


@click.group()
@example("authserver issuer add github --issuer https://token.actions.githubusercontent.com --kind github")
def issuer() -> None:
    """Trusted issuers: the platforms whose tokens authenticate workloads, in place of secrets.

    A trust rule then says which tokens authenticate which client: authserver client trust add
    """


issuer.add_command(add)


@issuer.command("list")
@output_option
@click.pass_context
@example("authserver issuer list")
def list_(ctx: click.Context, output: str) -> None:
    """List the trusted issuers."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        trusted = load_issuers(session.connection())
    shared = shared_keys([one for one in trusted if not one.disabled])
    own, now = installation.settings.issuer, installation.admin.now()
    print_records([issuer_record(one, own, shared, now) for one in trusted], _COLUMNS, output)


@issuer.command()
@click.argument("name")
@output_option
@click.pass_context
@example("authserver issuer show github")
def show(ctx: click.Context, name: str, output: str) -> None:
    """Show a trusted issuer with its keys and trust rules.

    Also shows how old the keys are, and why the last fetch of them failed. The rules are those of every client.
    """
    with open_installation(ctx) as installation, installation.database.read() as session:
        record = stored_record(installation, session, existing_issuer(session, name))
        rules = rules_of_issuer(session.connection(), name)
    print_issuer(record, output, rules)


@issuer.command()
@click.argument("name")
@click.option(
    "--jwks-file",
    type=FILE,
    help="Its public keys, a JWK set, in place of those that were given before. Not if its keys are fetched.",
)
@click.option(
    "--max-lifetime",
    callback=parse_lifetime,
    metavar="TIME",
    help="How long from now its tokens may be valid: 600 (seconds), 90s, 15m or 12h.",
)
@click.option(
    "--one-time", type=click.Choice([*ONE_TIME]), help="Accept each of its tokens once. auto: only for GitHub."
)
@output_option
@click.pass_context
@example(
    "authserver issuer update cluster --jwks-file jwks.json\n"
    "authserver issuer update cluster --max-lifetime 10m --one-time no"
)
def update(
    ctx: click.Context, name: str, jwks_file: Path | None, max_lifetime: int | None, one_time: str | None, output: str
) -> None:
    """Change the keys or the limits of a trusted issuer.

    Its trust rules stay. To change anything else, remove the issuer, and with it its rules, and add it again.
    """
    if jwks_file is None and max_lifetime is None and one_time is None:
        raise click.UsageError("Nothing to change: give at least one option, such as --max-lifetime 10m. See: --help")
    jwks = None if jwks_file is None else read_jwks(jwks_file)
    with open_installation(ctx) as installation, installation.database.write() as session:
        before = existing_issuer(session, name)
        once = None if one_time is None else before.kind.one_time if one_time == "auto" else ONE_TIME[one_time]
        changed = update_issuer(session, installation.admin, name, IssuerUpdate(jwks, max_lifetime, once))
        record = stored_record(installation, session, changed)
        latest = last_repetition(before, installation.admin.now())
    print_issuer(record, output)
    click.echo(WITHIN_A_SECOND, err=True)
    if changed.one_time and not before.one_time:
        click.echo(
            "Which tokens were used before is not known: each may be accepted once more until it expires, which is"
            f" at {iso_time(latest)} at the latest, unless --max-lifetime was larger before.",
            err=True,
        )
    if before.one_time and not changed.one_time:
        click.echo("Tokens that were used before are accepted again until they expire.", err=True)


@issuer.command()
@click.argument("name")
@output_option
@click.pass_context
@example("authserver issuer disable github")
def disable(ctx: click.Context, name: str, output: str) -> None:
    """Accept no more tokens of a platform. Its trust rules stay."""
    _set_disabled(ctx, name, output, disabled=True)


@issuer.command()
@click.argument("name")
@output_option
@click.pass_context
@example("authserver issuer enable github")
def enable(ctx: click.Context, name: str, output: str) -> None:
    """Accept the tokens of a disabled platform again."""
    _set_disabled(ctx, name, output, disabled=False)


def _set_disabled(ctx: click.Context, name: str, output: str, *, disabled: bool) -> None:
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = set_issuer_disabled(session, installation.admin, name, disabled=disabled)
        record = stored_record(installation, session, changed)
    print_issuer(record, output)
    click.echo(f"{WITHIN_A_SECOND} {_STAY_VALID}" if disabled else WITHIN_A_SECOND, err=True)


@issuer.command()
@click.argument("name")
@click.option("--yes", is_flag=True, help="Skip the confirmation prompt.")
@output_option
@click.pass_context
@example("authserver issuer remove github --yes")
def remove(ctx: click.Context, name: str, yes: bool, output: str) -> None:
    """Remove a trusted issuer and its trust rules. The clients stay."""
    confirm(f"Remove the trusted issuer {name}, and all of its trust rules?", yes=yes)
    with open_installation(ctx) as installation, installation.database.write() as session:
        rules = remove_issuer(session, installation.admin, name)
    print_record({"name": name, "removed": True, "rules": rules}, output)
    click.echo(f"{WITHIN_A_SECOND} {_STAY_VALID}", err=True)


@issuer.command()
@click.argument("kind", type=click.Choice([*KINDS]), metavar="KIND")
@output_option
@click.pass_context
@example("authserver issuer claims github")
def claims(ctx: click.Context, kind: str, output: str) -> None:
    """Show the claims to require of a kind of platform.

    KIND is kubernetes, github, gitlab, spiffe or oidc. Also prints what to be careful about.
    """
    preset, audience = PRESETS[kind], settings_of(ctx).issuer
    rows = [{"claim": one.claim, "example": one.example, "meaning": one.meaning} for one in preset.claims]
    examples = {one.claim: one.example for one in preset.claims}
    rule = " ".join(f"--claim {name}={examples[name]}" for name in preset.rule)
    command = f"authserver client trust add CLIENT_ID --issuer NAME {rule}"
    request = preset.audience.format(audience)
    if output == "json":
        record = {"kind": kind, "claims": rows, "rule": command, "request": request, "warnings": [*preset.warnings]}
        print_record(record, output)
        return
    print_records(rows, ("claim", "example", "meaning"), output)
    click.echo(f"\n{request}\nA rule: {command}")
    for warning in preset.warnings:
        click.echo(f"Warning: {warning}")
