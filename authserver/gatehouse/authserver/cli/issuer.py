"""`authserver issuer`: trust platforms whose tokens authenticate workloads."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.credentials import WITHIN_A_SECOND
from gatehouse.authserver.cli.installation import Installation, open_installation, settings_of
from gatehouse.authserver.cli.issuer_record import issuer_record, print_issuer
from gatehouse.authserver.workloads.issuer_keys import MAX_LENGTH
from gatehouse.authserver.workloads.key_fetching import fetch_keys
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.presets import PRESETS, audience_warnings
from gatehouse.authserver.workloads.registration import (
    MAX_LIFETIME,
    IssuerRegistration,
    add_issuer,
    check_issuer,
    existing_issuer,
    remove_issuer,
    replace_keys,
    set_issuer_disabled,
)
from gatehouse.authserver.workloads.registry import (
    KeyLocation,
    TrustedIssuer,
    load_issuers,
    rules_of_issuer,
    shared_keys,
)
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cli import confirm, example, join_scopes, output_option, parse_duration
from gatehouse.shared.service.fetch import FetchFailed
from gatehouse.shared.service.output import print_record, print_records

_ONE_TIME = {"yes": True, "no": False, "auto": None}
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_COLUMNS = ("name", "kind", "issuer", "disabled", "keys_from", "keys_at", "keys_problem")

STAY_VALID = "Tokens that were already issued stay valid until they expire, or until: authserver token revoke"


@click.group()
@example("authserver issuer add github --issuer https://token.actions.githubusercontent.com --kind github")
def issuer() -> None:
    """Trusted issuers: the platforms whose tokens authenticate workloads, in place of secrets.

    A trust rule then says which tokens authenticate which client: authserver client trust add
    """


def _parse_lifetime(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    if value is None:
        return None
    seconds = parse_duration(f"{value}s" if value.isdecimal() else value)
    if seconds is None or not 1 <= seconds <= MAX_LIFETIME:
        raise click.BadParameter("write 600 (seconds), 90s, 15m or 12h: at least 1s, at most 24h")
    return seconds


def _read_jwks(path: Path) -> bytes:
    """Read a file up to one byte over its limit, so that a larger one is refused."""
    with path.open("rb") as file:
        return file.read(MAX_LENGTH + 1)


@issuer.command()
@click.argument("name")
@click.option(
    "--issuer",
    "identifier",
    required=True,
    metavar="URL",
    help="The exact iss of its tokens; for SPIFFE, the trust domain, such as spiffe://example.org.",
)
@click.option("--kind", required=True, type=click.Choice([*KINDS]), help="The kind of platform.")
@click.option("--audience", help="The aud that its tokens must have.  [default: the issuer identifier of this server]")
@click.option(
    "--jwks-file",
    type=_FILE,
    help="Its public keys, a JWK set; for a platform that this server cannot reach. Renew them with: issuer update",
)
@click.option(
    "--jwks-uri",
    metavar="URL",
    help="Fetch its keys from this address.  [default: from the jwks_uri of its OpenID Connect metadata]",
)
@click.option(
    "--bearer-token-file",
    type=_FILE,
    help="A token, a JWT, that it requires for its keys. Each node reads this file again.",
)
@click.option("--ca-file", type=_FILE, help="Certificates (PEM) of the authorities to trust when its keys are fetched.")
@click.option(
    "--algorithms",
    multiple=True,
    callback=join_scopes,
    metavar='"A B"',
    help="The algorithms of its signatures, of RS256, PS256, ES256 and EdDSA.  [default: those of its kind]",
)
@click.option(
    "--max-lifetime",
    callback=_parse_lifetime,
    metavar="TIME",
    help="How long from now its tokens may be valid: 600 (seconds), 90s, 15m or 12h.  [default: that of its kind]",
)
@click.option(
    "--one-time",
    type=click.Choice([*_ONE_TIME]),
    default="auto",
    show_default=True,
    help="Accept each of its tokens once. auto: only for GitHub, where a job can get another one.",
)
@click.option(
    "--token-endpoint-audience",
    is_flag=True,
    help="Accept tokens for the URL of the token endpoint too, in the JWT bearer grant.",
)
@output_option
@click.pass_context
@example(
    "authserver issuer add github --issuer https://token.actions.githubusercontent.com --kind github\n"
    "authserver issuer add cluster --issuer https://kubernetes.default.svc.cluster.local --kind kubernetes"
    " --jwks-file jwks.json\n"
    "authserver issuer add spire --issuer spiffe://example.org --kind spiffe"
    " --jwks-uri https://spire.example.org:8443/keys"
)
def add(
    ctx: click.Context,
    /,
    name: str,
    identifier: str,
    jwks_file: Path | None,
    jwks_uri: str | None,
    bearer_token_file: Path | None,
    ca_file: Path | None,
    algorithms: str,
    one_time: str,
    output: str,
    **values: Any,
) -> None:
    """Trust a platform under a NAME of your choice.

    Its keys are fetched now, and every 10 minutes by the server. If they cannot be fetched, nothing is changed.
    """
    if jwks_file is not None and (jwks_uri or bearer_token_file or ca_file):
        raise click.UsageError(
            "With --jwks-file, no keys are fetched. Leave out --jwks-uri and the files for fetching."
        )
    location = KeyLocation(
        discovery=jwks_file is None and jwks_uri is None,
        jwks_uri=jwks_uri,
        ca_file=_absolute(ca_file),
        bearer_token_file=_absolute(bearer_token_file),
    )
    with open_installation(ctx) as installation:
        registration = IssuerRegistration(
            name=name,
            issuer=identifier,
            location=location,
            jwks=None if jwks_file is None else _read_jwks(jwks_file),
            algorithms=algorithms.split(),
            one_time=_ONE_TIME[one_time],
            **values,
        )
        # Before anything is fetched, and before the transaction, which would keep others waiting.
        check_issuer(registration)
        if location.is_fetched:
            registration = replace(registration, jwks=_fetch(identifier, location))
        with installation.database.write() as session:
            added = add_issuer(session, installation.admin, registration)
            record = _record(installation, session, added)
    print_issuer(record, output)
    for warning in audience_warnings(added):
        click.echo(f"Warning: {warning}", err=True)
    click.echo(
        f"The claims to require of its tokens: authserver issuer claims {added.kind.name}\n"
        f"Then: authserver client trust add CLIENT_ID --issuer {added.name} --claim NAME=VALUE",
        err=True,
    )


def _absolute(path: Path | None) -> str | None:
    """Return the path for every working directory. Links stay: the kubelet replaces them when it renews a token."""
    return None if path is None else str(path.absolute())


def _fetch(identifier: str, location: KeyLocation) -> bytes:
    """Fetch the keys of an issuer. Raises CommandRefused."""
    try:
        return fetch_keys(identifier, location)
    except FetchFailed as failed:
        raise CommandRefused(f"The keys of the issuer cannot be fetched, and nothing was changed. {failed}") from None


def _record(installation: Installation, session: Session, trusted: TrustedIssuer) -> dict[str, Any]:
    enabled = [one for one in load_issuers(session.connection()) if not one.disabled]
    return issuer_record(trusted, installation.settings.issuer, shared_keys(enabled), installation.admin.now())


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
    """Show a trusted issuer, its keys and how old they are, and the trust rules of every client."""
    with open_installation(ctx) as installation, installation.database.read() as session:
        record = _record(installation, session, existing_issuer(session, name))
        rules = rules_of_issuer(session.connection(), name)
    print_issuer(record, output, rules)


@issuer.command()
@click.argument("name")
@click.option(
    "--jwks-file", type=_FILE, required=True, help="Its public keys, a JWK set, in place of the present ones."
)
@output_option
@click.pass_context
@example("authserver issuer update cluster --jwks-file jwks.json")
def update(ctx: click.Context, name: str, jwks_file: Path, output: str) -> None:
    """Replace the keys of a trusted issuer that was added with --jwks-file."""
    with open_installation(ctx) as installation, installation.database.write() as session:
        changed = replace_keys(session, installation.admin, name, _read_jwks(jwks_file))
        record = _record(installation, session, changed)
    print_issuer(record, output)
    click.echo(WITHIN_A_SECOND, err=True)


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
        record = _record(installation, session, changed)
    print_issuer(record, output)
    click.echo(f"{WITHIN_A_SECOND} {STAY_VALID}" if disabled else WITHIN_A_SECOND, err=True)


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
    click.echo(f"{WITHIN_A_SECOND} {STAY_VALID}", err=True)


@issuer.command()
@click.argument("kind", type=click.Choice([*KINDS]))
@output_option
@click.pass_context
@example("authserver issuer claims github")
def claims(ctx: click.Context, kind: str, output: str) -> None:
    """Show which claims to require of the tokens of a kind of platform, and what to be careful about."""
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
