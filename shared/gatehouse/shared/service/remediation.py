"""The command that would allow what was refused, as an admin finds it in the audit log and may paste it."""

import shlex


def client_command(command: str, client_id: str) -> str:
    """Return `authserver client COMMAND CLIENT_ID`, quoted for a shell: the client_id may be a caller's invention."""
    return shlex.join(["authserver", "client", *command.split(), client_id])


def grant_command(client_id: str, resource: str, scope: str) -> str:
    """Return the command that grants a scope, quoted for a shell.

    A scope and a resource are a caller's own text, and `$(...)` is within the grammar of both (RFC 6749 3.3,
    RFC 3986): unquoted, whoever is refused would choose what the admin runs (CWE-78).
    """
    return shlex.join(["authserver", "client", "grant", "add", client_id, "--resource", resource, "--scope", scope])


def catalogue_command(resource: str, name: str, file: str) -> str:
    """Return the command that brings the scopes of a resource up to date with its catalogue file, quoted."""
    return shlex.join(["authserver", "resource", "add", resource, "--name", name, "--catalogue", file])
