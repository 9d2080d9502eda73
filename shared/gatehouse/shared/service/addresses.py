"""The address that a server listens on, and whether it can."""

import errno
import socket


def split_bind(bind: str) -> tuple[str, int]:
    """Return the host, without brackets, and the port of a `HOST:PORT` that `check_bind` accepted."""
    host, _, port = bind.rpartition(":")
    return host.strip("[]"), int(port)


def bind_probe(bind: str, setting: str) -> None:
    """Bind `HOST:PORT` and release it, to report in one line what gunicorn reports after five attempts.

    Raises:
        OSError: the address cannot be bound; its `filename` is the setting.
    """
    address = split_bind(bind)
    with socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            raise OSError(error.errno, error.strerror, setting) from None


def in_use(bind: str, setting: str) -> bool:
    """Tell whether a process listens on an address. It is not known which one: the server itself may be running.

    Raises:
        OSError: no process could listen on it.
    """
    try:
        bind_probe(bind, setting)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        return True
    return False
