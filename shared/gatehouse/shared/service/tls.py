"""The certificate authorities that outgoing TLS connections trust, and what is wrong with a server's certificate.

The resource server, its `check` command and the bridge all use the context made here.
"""

import os
import ssl
from functools import cache
from pathlib import Path

import httpx2

from gatehouse.shared.protocol.redaction import printable, quoted
from gatehouse.shared.service.settings import InvalidSettings

_UNTRUSTED = frozenset({18, 19, 20, 21})
"""OpenSSL's verification errors for a chain that ends at no trusted authority (x509_vfy.h): self-signed certificate,
self-signed certificate in the chain, issuer not found, first certificate not verifiable."""


def tls_context(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """Return the context of every outgoing TLS connection of the process.

    It trusts the authorities of the first of these that is set: `ca_file`, the variable `SSL_CERT_FILE`, the variable
    `SSL_CERT_DIR`; otherwise those of the operating system. Cached, because loading them is slow. A context made before
    a fork serves every worker: it holds no connection.

    Args:
        ca_file: certificates in PEM.
        setting: the variable that names `ca_file`, for messages.

    Raises:
        InvalidSettings: the file or folder cannot be read, or holds no certificate.
    """
    if ca_file is not None:
        return _load_once(setting, str(ca_file))
    for variable in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        if location := os.environ.get(variable):
            return _load_once(variable, location)
    return _system_context()


def current_tls_context(ca_file: Path | None, setting: str) -> ssl.SSLContext:
    """Return the context of `tls_context`, with the authorities that `ca_file` holds now.

    A cluster replaces its authority, and the file, while the server runs. Raises InvalidSettings.
    """
    return tls_context(None, setting) if ca_file is None else _load(setting, str(ca_file))


def _load(variable: str, location: str) -> ssl.SSLContext:
    # OpenSSL reads a folder only when it verifies a certificate, and reports a missing one as an untrusted certificate.
    in_folder = variable == "SSL_CERT_DIR"
    problem = "not a folder"
    try:
        if not in_folder:
            return ssl.create_default_context(cafile=location)
        if Path(location).is_dir():
            return ssl.create_default_context(capath=location)
    except ssl.SSLError:
        problem = "holds no certificate in PEM"
    except OSError as error:
        problem = error.strerror or "cannot be read"
    raise InvalidSettings(f"{variable}={quoted(location)}: {problem}")


_load_once = cache(_load)


@cache
def _system_context() -> ssl.SSLContext:
    return httpx2.create_ssl_context(trust_env=False)


def certificate_problem(error: BaseException | None, host: str, setting: str | None) -> str | None:
    """Return what is wrong with the TLS of a server, and how to fix it; None if `error` has another cause.

    Args:
        error: what the HTTP client raised.
        host: the server, for the message.
        setting: the variable that names the trusted authorities; None if only SSL_CERT_FILE does.
    """
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            reason = printable(error.verify_message.rstrip("."))
            if error.verify_code in _UNTRUSTED:
                settings = "SSL_CERT_FILE" if setting is None else f"{setting} or SSL_CERT_FILE"
                return (
                    f"the certificate of {host} is not trusted ({reason}): set {settings} to the certificate file of "
                    "the authority that issued it"
                )
            return f"the certificate of {host} is not valid ({reason}): replace it on that server"
        if isinstance(error, ssl.SSLError):
            return f"{host} does not speak TLS, or no version of it that this program supports"
        error = error.__cause__ or error.__context__
    return None
