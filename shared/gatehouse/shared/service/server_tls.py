"""The TLS of a server that serves https itself, without a proxy."""

import ssl
from pathlib import Path

from gatehouse.shared.protocol.redaction import printable, quoted
from gatehouse.shared.service.files import UnsafeFile, read_private_file
from gatehouse.shared.service.settings import InvalidSettings


def server_context(certificate: Path, key: Path, prefix: str) -> ssl.SSLContext:
    """Return the context of a server's own TLS: version 1.2 or newer, for HTTP/1.1.

    Args:
        certificate: the server's certificate and its chain, in PEM.
        key: its private key, in PEM without a passphrase.
        prefix: of the variables that name the files, for messages.

    Raises:
        InvalidSettings: a file cannot be read, others can read the key, or the two do not belong together.
    """
    for variable, path in (("TLS_CERTIFICATE", certificate), ("TLS_KEY", key)):
        try:
            if variable == "TLS_KEY":
                read_private_file(path, "TLS key", limit=1)
            path.read_bytes()
        except OSError as error:
            raise InvalidSettings(f"{prefix}{variable}={quoted(str(path))}: {error.strerror}") from None
        except UnsafeFile as error:
            raise InvalidSettings(f"{prefix}{variable}: {error}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    try:
        # Without a password, OpenSSL would ask for a passphrase at the terminal.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        reason = printable(getattr(error, "reason", None) or "unreadable")
        raise InvalidSettings(
            f"{prefix}TLS_CERTIFICATE={quoted(str(certificate))}: it and {prefix}TLS_KEY={quoted(str(key))} are not a "
            f"certificate chain and its private key, both in PEM and without a passphrase ({reason})"
        ) from None
    return context
