"""Commands that would allow a refused request. An admin finds them in the audit log and may paste them."""

import shlex


def client_command(command: str, client_id: str) -> str:
    """Return `authserver client COMMAND CLIENT_ID`, quoted for a shell: a caller may have invented the client_id."""
    return shlex.join(["authserver", "client", *command.split(), client_id])


def grant_command(client_id: str, resource: str, scope: str) -> str:
    """Return the command that grants a scope, quoted for a shell.

    A caller chooses the text of scope and resource, and the grammar of both allows `$(...)` (RFC 6749 3.3, RFC 3986).
    Unquoted, a refused caller could choose what the admin runs (CWE-78).
    """
    return shlex.join(["authserver", "client", "grant", "add", client_id, "--resource", resource, "--scope", scope])


def catalogue_command(resource: str, name: str, file: str) -> str:
    """Return the command that updates the scopes of a resource from its catalogue file, quoted for a shell."""
    return shlex.join(["authserver", "resource", "add", resource, "--name", name, "--catalogue", file])
