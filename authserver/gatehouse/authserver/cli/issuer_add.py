"""`authserver issuer add`: trust a platform, with keys that are given or fetched."""

import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from gatehouse.authserver.cli.installation import open_installation
from gatehouse.authserver.cli.issuer_options import FILE, ONE_TIME, parse_lifetime, read_jwks
from gatehouse.authserver.cli.issuer_record import print_issuer, stored_record
from gatehouse.authserver.workloads.key_fetching import MisspelledIssuer, fetch_keys
from gatehouse.authserver.workloads.kinds import KINDS
from gatehouse.authserver.workloads.presets import audience_warnings
from gatehouse.authserver.workloads.registration import IssuerRegistration, add_issuer, check_issuer
from gatehouse.authserver.workloads.registry import KeyLocation, load_issuers
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.cli import example, join_scopes, output_option
from gatehouse.shared.service.fetch import FetchFailed


@click.command()
@click.argument("name")
@click.option(
    "--issuer",
    "identifier",
    required=True,
    metavar="URL",
    help="The exact iss of its tokens; for SPIFFE, the trust domain, such as spiffe://example.org.",
)
@click.option(
    "--kind",
    required=True,
    type=click.Choice([*KINDS]),
    metavar="KIND",
    help=f"The kind of platform: {', '.join(KINDS)}.",
)
@click.option("--audience", help="The aud that its tokens must have.  [default: the issuer identifier of this server]")
@click.option(
    "--jwks-file",
    type=FILE,
    help="Its public keys, a JWK set; for a platform that this server cannot reach. To replace them later, run:"
    " authserver issuer update",
)
@click.option(
    "--jwks-uri",
    metavar="URL",
    help="Fetch its keys from this address.  [default: from the jwks_uri of its OpenID Connect metadata]",
)
@click.option(
    "--bearer-token-file",
    type=FILE,
    help="The token, a JWT, that this server presents to the platform for its keys. Needed only where the platform"
    " requires one, as the API server of a cluster may. Each node reads the file again for each fetch.",
)
@click.option("--ca-file", type=FILE, help="Certificates (PEM) of the authorities to trust when its keys are fetched.")
@click.option(
    "--algorithms",
    multiple=True,
    callback=join_scopes,
    metavar='"A B"',
    help="The algorithms of its signatures, of RS256, PS256, ES256 and EdDSA.  [default: those of its kind]",
)
@click.option(
    "--max-lifetime",
    callback=parse_lifetime,
    metavar="TIME",
    help="How long from now its tokens may be valid: 600 (seconds), 90s, 15m or 12h.  [default: that of its kind]",
)
@click.option(
    "--one-time",
    type=click.Choice([*ONE_TIME]),
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
            "With --jwks-file, no keys are fetched. Leave out --jwks-uri, --ca-file and --bearer-token-file."
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
            jwks=None if jwks_file is None else read_jwks(jwks_file),
            algorithms=algorithms.split(),
            one_time=ONE_TIME[one_time],
            **values,
        )
        # Before anything is fetched, and before the transaction, which would keep others waiting.
        check_issuer(registration)
        if location.is_fetched:
            registration = replace(registration, jwks=_fetch(registration))
        with installation.database.write() as session:
            added = add_issuer(session, installation.admin, registration)
            record = stored_record(installation, session, added)
            stored = load_issuers(session.connection())
    print_issuer(record, output)
    if identifier.endswith("/"):
        click.echo(f"Note: the iss of its tokens must be exactly {identifier}, with the slash at the end.", err=True)
    if same := [one.name for one in stored if one.issuer == added.issuer and one.name != added.name]:
        names, choice = ", ".join(same), " or ".join(same)
        click.echo(f"Note: this is also the iss of {names}. If it is the same platform, use {choice}.", err=True)
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


def _fetch(registration: IssuerRegistration) -> bytes:
    """Fetch the keys of an issuer. Raises CommandRefused."""
    location = registration.location
    try:
        return fetch_keys(registration.issuer, location)
    except FetchFailed as failed:
        words = ("--issuer", registration.issuer, "--kind", registration.kind)
        command = f"authserver issuer add {registration.name} {shlex.join(words)}"
        lines = [f"The keys of the issuer cannot be fetched, and nothing was changed. {failed}"]
        if isinstance(failed, MisspelledIssuer):
            raise CommandRefused(lines[0]) from None
        lines.append(f"To give the keys yourself, without a fetch: {command} --jwks-file FILE")
        if location.discovery:
            lines.append(f"If only its metadata is missing, name the address of its keys: {command} --jwks-uri URL")
        raise CommandRefused("\n".join(lines)) from None
