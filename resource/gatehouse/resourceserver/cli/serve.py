"""`resourceserver serve`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gatehouse.resourceserver.app import create_app, create_gateway
from gatehouse.resourceserver.bearer.challenge import baseline_scopes
from gatehouse.resourceserver.catalogue.policy_file import InvalidPolicy
from gatehouse.resourceserver.cli.catalogue_loading import check_policy, load_schema, load_served, read_resources
from gatehouse.resourceserver.cli.installation import open_database, served_options, settings_of
from gatehouse.resourceserver.settings import CA_FILE_SETTING, Settings
from gatehouse.resourceserver.upstream.policy_watch import PolicyWatch
from gatehouse.resourceserver.upstream.stdio.owner_process import ProgramOwner
from gatehouse.shared.service.audit.keys import AuditKeys
from gatehouse.shared.service.cli import Refusal, example
from gatehouse.shared.service.gunicorn import Companion, Server, heartbeat_folder
from gatehouse.shared.service.tls import tls_context


@click.command()
@served_options
@click.pass_context
@example(
    "RESOURCESERVER_WORKERS=4 resourceserver serve\n"
    "resourceserver serve --tools mypackage.mytools\n"
    "resourceserver serve --upstream policy.toml"
)
def serve(ctx: click.Context, tools: str | None, upstream: Path | None) -> None:
    """Serve until SIGTERM or Ctrl-C. May start before the authorization server, and becomes ready once it answers.

    With --upstream, the server forwards calls to another MCP server, as the policy file allows. It reads the file again
    when it changes; a file that cannot be used changes nothing, and the log says why.

    The limits of calls are divided by the number of workers, unless RESOURCESERVER_LIMITS_URL names a Redis or Valkey
    server where the workers of all nodes count together.
    """
    settings = settings_of(ctx, tools=tools, upstream=upstream)
    companions: list[Companion] = []

    def prepare() -> Callable[[], Any]:
        # A catalogue that cannot be served stops the start here, not in each worker.
        catalogue = load_served(settings)
        baseline_scopes(settings, catalogue)
        read_resources(catalogue, settings.resource)
        with open_database(settings, load_schema(catalogue)):
            pass
        AuditKeys.read(settings.audit_keys)
        # Before the fork, so that the workers need not load the certificate authorities.
        tls_context(settings.ca_file, CA_FILE_SETTING)
        if settings.upstream is not None:
            return _gateway(settings, settings.upstream, companions)
        return lambda: create_app(settings, catalogue)

    Server(name="resourceserver", settings=settings, prepare=prepare, companions=companions).run()


def _gateway(settings: Settings, path: Path, companions: list[Companion]) -> Callable[[], Any]:
    """Return what creates the application of a worker. Raises Refusal for a policy that cannot be used."""
    try:
        policies = PolicyWatch(path, lambda policy: check_policy(settings, policy))
    except InvalidPolicy as error:
        raise Refusal(str(error)) from None
    owner = ProgramOwner(
        lambda: policies.accepted.policy.upstream, settings.log_format, settings.log_level, heartbeat_folder()
    )
    companions += [policies, owner]
    return lambda: create_gateway(settings, policies, owner.socket)
