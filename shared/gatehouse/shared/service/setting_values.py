"""Checks of values that several settings have: URLs, addresses to listen on, and rates."""

import re
from ipaddress import ip_address
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator

from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_protected_transport,
    parse_resource_identifier,
)
from gatehouse.shared.service.addresses import split_bind
from gatehouse.shared.service.rates import parse_rate

_LIMITS_SCHEMES: Final = frozenset({"redis", "rediss", "valkey", "valkeys"})


def _check_rate(value: str) -> str:
    parse_rate(value)
    return value


RateText = Annotated[str, AfterValidator(_check_rate)]
"""A setting that `parse_rate` reads."""


def check_public_url(value: str) -> str:
    """Check a URL that is published to clients: an issuer or a resource.

    Raises:
        ValueError: not an absolute URL, plain http beyond this machine, or a query, fragment or user information.
    """
    if "?" in value or "#" in value:
        raise ValueError("has a query or a fragment; remove it (RFC 8414 2)")
    try:
        parse_resource_identifier(value)
    except InvalidResourceIdentifier:
        raise ValueError("must be https://HOST, without user information") from None
    if not is_protected_transport(value):
        raise ValueError("must be https; plain http is for loopback addresses only (OAuth 2.1, 1.5)")
    return value


def check_issuer(value: str) -> str:
    """Check an issuer identifier (RFC 8414 2).

    Raises:
        ValueError: as `check_public_url`, or for a path: the metadata of such an issuer has another URL (RFC 8414 3.1),
            which this server does not serve.
    """
    if value.endswith("/"):
        raise ValueError("ends with a slash; remove it, because issuers are compared exactly (RFC 8414 3.3)")
    if urlsplit(check_public_url(value)).path:
        raise ValueError("has a path; an issuer is the root of its host, such as https://auth.example.com")
    return value


def check_internal_url(value: str) -> str:
    """Check the address of another server in an internal network, and return it in canonical form. Raises ValueError.

    It may be plain http beyond this machine, unlike every other URL.
    """
    try:
        address = parse_resource_identifier(value)
    except InvalidResourceIdentifier:
        address = ""
    if not address or urlsplit(address).path:
        raise ValueError("must be scheme, host and port, such as http://authserver:9000")
    return address


def check_bind(value: str) -> str:
    """Check a `HOST:PORT`, as in `127.0.0.1:9000` or `[::1]:9000`. Raises ValueError."""
    host, _, port = value.rpartition(":")
    if not host or "," in host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise ValueError("must be HOST:PORT, such as 127.0.0.1:9000")
    return value


def check_private_bind(value: str) -> str:
    """Check a `HOST:PORT` that must not be public. Raises ValueError, also for a public address.

    Accepts host names, and 0.0.0.0, which a container needs: its network decides who can reach it.
    """
    host = split_bind(check_bind(value))[0]
    try:
        is_public = ip_address(host).is_global
    except ValueError:
        is_public = False
    if is_public:
        raise ValueError("must be a loopback or private address, such as 127.0.0.1:9100")
    return value


def check_limits_url(value: str) -> str:
    """Check the URL of a Redis or Valkey server. Raises ValueError."""
    try:
        parts = urlsplit(value)
        valid = parts.scheme in _LIMITS_SCHEMES and parts.hostname and parts.port != 0 and not parts.query
        valid = valid and not parts.fragment and re.fullmatch(r"(?:/[0-9]{0,2})?", parts.path, re.ASCII) is not None
    except ValueError:
        valid = False
    if not valid:
        raise ValueError("must be redis://HOST:PORT/NUMBER, or rediss:// with TLS; valkey:// and valkeys:// as well")
    return value
