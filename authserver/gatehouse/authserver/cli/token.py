"""`authserver token`: issue, inspect and revoke access tokens."""

import sys
from collections.abc import Sequence
from functools import partial

import click
from sqlalchemy.orm import Session

from gatehouse.authserver.cli.client_record import BY_NEXT_POLL
from gatehouse.authserver.cli.installation import Installation, open_installation
from gatehouse.authserver.clients.authentication import AuthenticatedClient
from gatehouse.authserver.clients.registry import Client, existing_client, load_client
from gatehouse.authserver.db.models import SpentAssertionRow
from gatehouse.authserver.errors import OAuthError
from gatehouse.authserver.grants.client_credentials import choose_resource, choose_scope, read_resource
from gatehouse.authserver.grants.entitlements import ScopeNotGranted, explain
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.resources.registry import declared_scopes, list_identifiers
from gatehouse.authserver.tokens.inspect import Inspection, why_not_a_token
from gatehouse.authserver.tokens.issue import Index, IssuedToken, TokenIssuer
from gatehouse.authserver.tokens.reservations import reserve_block
from gatehouse.authserver.tokens.revocation import revoke_all, revoke_by_jti
from gatehouse.authserver.tokens.status_lists import is_active
from gatehouse.authserver.tokens.validation import InactiveToken, TokenReader
from gatehouse.authserver.workloads.authentication import PLATFORM_TOKEN
from gatehouse.authserver.workloads.inspection import PlatformInspection, looks_like_platform_token
from gatehouse.authserver.workloads.platform_token import Presented
from gatehouse.authserver.workloads.registry import TrustedIssuer, load_issuers, rules_of_issuer
from gatehouse.authserver.workloads.verifier import WorkloadVerifier
from gatehouse.shared.protocol.claims import MAX_TOKEN_LENGTH
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.audit.events import AuditAction
from gatehouse.shared.service.checks import Check, passed
from gatehouse.shared.service.cli import example, join_scopes, output_option
from gatehouse.shared.service.output import print_record, print_records

_FORMS = {"client-assertion": Presented.CLIENT_ASSERTION, "grant": Presented.GRANT}


@click.group()
@example("authserver token inspect < token.txt")
def token() -> None:
    """Issue, inspect and revoke access tokens; inspect tokens of platforms."""


@token.command()
@click.option("--client", "client_id", required=True, metavar="CLIENT_ID", help="The client to issue the token to.")
@click.option("--resource", required=True, metavar="URL", help="The resource that the token is for.")
@click.option(
    "--scope",
    multiple=True,
    callback=join_scopes,
    metavar='"A B"',
    help="The scopes to request.  [default: every scope granted to the client at the resource]",
)
@output_option
@click.pass_context
@example("authserver token issue --client agent_0123456789abcdef0123 --resource https://mcp.example.com/mcp")
def issue(ctx: click.Context, client_id: str, resource: str, scope: str, output: str) -> None:
    """Issue a token for debugging.

    The token is the one that the token endpoint would issue, but the client's credentials are not needed. The audit
    log records that you issued it.
    """
    with open_installation(ctx) as installation:
        keys = installation.keys(to_sign=True)
        with installation.database.write() as session:
            issued = _issue(installation, session, keys, client_id, resource, scope)
    claims = issued.claims
    print_record(
        {
            "access_token": issued.access_token,
            "token_type": "Bearer",
            "expires_in": claims.exp - claims.iat,
            "scope": format_scope(claims.scope),
            "jti": claims.jti,
        },
        output,
    )


def _issue(
    installation: Installation, session: Session, keys: KeyRing, client_id: str, resource: str, scope: str
) -> IssuedToken:
    settings, admin = installation.settings, installation.admin
    client = existing_client(session, client_id)
    if client.disabled:
        raise CommandRefused(f"The client is disabled. See: authserver client enable {client_id}")
    # The administrator vouches for the client.
    authenticated = AuthenticatedClient(client)
    try:
        identifier = choose_resource(authenticated, read_resource([resource]))
        granted = choose_scope(authenticated, identifier, {"scope": scope} if scope else {})
    except OAuthError as error:
        refusal = error
        if isinstance(error, ScopeNotGranted):
            refusal = explain(error, list_identifiers(session), declared_scopes(session, error.resource))
        raise CommandRefused(f"{refusal.error}: {refusal.reason}{_remediation(refusal.remediation)}") from None
    index = _allocate_index(session, client, admin.now())
    issued = TokenIssuer(settings.issuer, settings.token_ttl).issue(granted, index, keys.signing_key, admin.now())
    claims = issued.claims
    detail = {"aud": claims.aud, "scope": issued.scope, "exp": claims.exp, "kid": issued.kid}
    admin.record(session, AuditAction.TOKEN_ISSUE, client_id, jti=claims.jti, **detail)
    return issued


def _refuse_arguments(ctx: click.Context) -> None:
    """Refuse arguments without repeating them, because one may be a token. Raises UsageError."""
    if ctx.args:
        raise click.UsageError(
            f"The token is read from standard input, and not from an argument. Run: {ctx.command_path} < FILE"
        )


def _read_token() -> str:
    if sys.stdin.isatty():
        click.echo("Paste the token, then press Ctrl-D.", err=True)
    return sys.stdin.read(MAX_TOKEN_LENGTH + 2).strip()


def _remediation(remediation: str | None) -> str:
    """Return the remediation of a refusal, a command or a sentence, as the end of a message."""
    if remediation is None:
        return ""
    return f". Run: {remediation}" if remediation.startswith("authserver ") else f". {remediation}"


def _allocate_index(session: Session, client: Client, now: float) -> Index:
    block = reserve_block(session, client.client_id, 1, int(now))
    assert block is not None  # noqa: S101 - the client exists and is enabled in this transaction
    return Index(block.list_id, block.start)


@token.command(context_settings={"allow_extra_args": True})
@click.option(
    "--form",
    type=click.Choice([*_FORMS]),
    help="Check a platform token for this form of request alone.  [default: both forms must be accepted]",
)
@output_option
@click.pass_context
@example("authserver token inspect < token.txt")
def inspect(ctx: click.Context, form: str | None, output: str) -> None:
    """Check an access token, or a token of a platform.

    The token is read from standard input. For an access token, makes the checks of a resource server. For a token of a
    trusted issuer, makes those of the token endpoint: which trust rule matches it, or which of its claims differ from
    the closest rules. A token for one use stays unused. Prints the result of each check. Exit code 1 if one fails. The
    token itself is not printed.
    """
    _refuse_arguments(ctx)
    text = _read_token()
    with open_installation(ctx) as installation:
        with installation.database.read() as session:
            issuers = load_issuers(session.connection())
        advice: Sequence[str] = ()
        if why_not_a_token(text) is None and looks_like_platform_token(text, installation.settings.issuer, issuers):
            presented = None if form is None else _FORMS[form]
            checks, advice = _inspect_platform_token(installation, issuers, text, presented)
        elif form is not None:
            raise CommandRefused("This is not a platform token. Leave out --form, which is for platform tokens only.")
        else:
            checks = _inspect_access_token(installation, text)
    print_records([check.record() for check in checks], ("check", "outcome", "detail"), output)
    for line in advice:
        click.echo(line, err=True)
    if not passed(checks):
        ctx.exit(1)


def _inspect_access_token(installation: Installation, text: str) -> list[Check]:
    keys = parse_key_set(installation.keys().jwks)
    with installation.database.read() as session:
        return Inspection(
            token=text,
            issuer=installation.settings.issuer,
            keys=keys,
            find_client=partial(load_client, session.connection()),
            resources=frozenset(list_identifiers(session)),
            clock=installation.admin.clock,
            is_active=lambda index: is_active(session, index.list_id, index.idx),
        ).run()


def _inspect_platform_token(
    installation: Installation, issuers: Sequence[TrustedIssuer], text: str, form: Presented | None
) -> tuple[list[Check], Sequence[str]]:
    """Return the checks of a token, and what to change."""
    with installation.database.read() as session:
        inspection = PlatformInspection(
            token=text,
            verifier=WorkloadVerifier(installation.settings.issuer),
            issuers=issuers,
            find_rules=partial(rules_of_issuer, session.connection()),
            find_client=partial(load_client, session.connection()),
            is_spent=lambda client_id, digest: (
                session.get(SpentAssertionRow, (PLATFORM_TOKEN, client_id, digest)) is not None
            ),
            now=installation.admin.clock(),
            form=form,
        )
        return inspection.run(), inspection.advice


@token.command(context_settings={"allow_extra_args": True})
@click.option("--jti", help="Revoke the token with this jti, as shown in the audit log.")
@click.option("--client", "client_id", metavar="CLIENT_ID", help="Revoke every token of this client.")
@output_option
@click.pass_context
@example(
    "authserver token revoke < token.txt\n"
    "authserver token revoke --jti 0123456789ab.42.AAAAAAAAAAAAAAAAAAAAAA\n"
    "authserver token revoke --client agent_0123456789abcdef0123"
)
def revoke(ctx: click.Context, jti: str | None, client_id: str | None, output: str) -> None:
    """Revoke one token, or every token of a client.

    Without --jti or --client, the token is read from standard input.

    The client stays enabled and can obtain new tokens. To prevent that, run: authserver client disable
    """
    _refuse_arguments(ctx)
    if jti is not None and client_id is not None:
        raise click.UsageError("Give --jti or --client, not both.")
    with open_installation(ctx) as installation:
        if jti is None and client_id is None:
            jti = _read_jti(installation)
        with installation.database.write() as session:
            if jti is not None:
                client_id = revoke_by_jti(session, installation.admin, jti)
            elif client_id is not None:
                revoke_all(session, installation.admin, client_id)
    print_record({"client_id": client_id, "jti": jti or "all", "revoked": True}, output)
    click.echo(f"Takes effect {BY_NEXT_POLL}.", err=True)


def _read_jti(installation: Installation) -> str:
    text = _read_token()
    if (problem := why_not_a_token(text, "revoke")) is not None:
        raise CommandRefused(f"Nothing to revoke: {problem}")
    reader = TokenReader(installation.database, installation.settings.issuer)
    try:
        claims, _ = reader.read(text, installation.keys(), installation.admin.now())
    except InactiveToken as error:
        raise CommandRefused(f"Nothing to revoke: {error.reason}. See: authserver token inspect < token.txt") from None
    return claims.jti
