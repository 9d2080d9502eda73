"""Opens an upstream by its transport."""

from pathlib import Path

from gatehouse.resourceserver.catalogue.policy_file import HttpTransport, UpstreamSettings
from gatehouse.resourceserver.upstream.caller_identity import CallerIdentity
from gatehouse.resourceserver.upstream.http.http_upstream import HttpUpstream
from gatehouse.resourceserver.upstream.http.session_store import SessionStore
from gatehouse.resourceserver.upstream.stdio.owner_client import OwnerUpstream
from gatehouse.resourceserver.upstream.stdio.stdio_upstream import StdioUpstream
from gatehouse.resourceserver.upstream.upstream import Upstream


def open_upstream(
    settings: UpstreamSettings,
    *,
    sessions: SessionStore | None = None,
    identity: CallerIdentity | None = None,
    owner: Path | None = None,
) -> Upstream:
    """Return the upstream. It connects when it is used, within its `running()`.

    Args:
        settings: the upstream, as the policy declares it.
        sessions: the callers' sessions with a stateful HTTP server. None for a command, which calls no tool.
        identity: tells an HTTP server who calls, if the policy says so. None for a command.
        owner: the socket of the process that owns the programs of stdio. None: they are children of this process.
    """
    if isinstance(settings.transport, HttpTransport):
        return HttpUpstream(settings, sessions, identity=identity)
    return StdioUpstream(settings) if owner is None else OwnerUpstream(owner, settings)
