"""What the operating system refuses: an address that a server is to listen on, a file that it needs."""

import errno
import socket


def bind_probe(bind: str, setting: str) -> None:
    """Bind `HOST:PORT` and let go of it: say at once, and in one line, what gunicorn would say after five tries.

    Raises:
        OSError: the address cannot be bound; its `filename` is the setting.
    """
    host, _, port = bind.rpartition(":")
    host = host.strip("[]")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError as error:
            raise OSError(error.errno, error.strerror, setting) from None


def explain_os_error(error: OSError) -> str:
    """Say which file or address cannot be used, and why."""
    return f"{error.filename or 'A file'} cannot be used: {error.strerror or 'input/output'}."


def describe_address(bind: str, setting: str) -> str:
    """Return what `check` says of an address.

    One that is in use is no failure: `check` is asked of a running server, too, and cannot tell who listens.

    Raises:
        OSError: no process could listen there.
    """
    try:
        bind_probe(bind, setting)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return f"{bind} is in use: by this server, if it runs"
    return f"{bind} is free"
