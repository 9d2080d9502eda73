"""The address that a request came from, also behind proxies.

A proxy names the address of its client in X-Forwarded-For, to which each proxy adds one at the end. The header is
believed only from proxies that the settings name: anyone else may send any value.
"""

import ipaddress
from collections.abc import Sequence
from typing import Final

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

UNKNOWN: Final = "unknown"
"""Stands for a peer without an IP address."""

_SUBNET: Final = 64
"""The length of the prefix that one user of IPv6 has, at least. The rest of an address is the user's choice."""


def parse_proxies(text: str) -> tuple[_Network, ...]:
    """Read addresses and networks that are separated by spaces. Raises ValueError."""
    networks = []
    for word in text.split():
        try:
            network = ipaddress.ip_network(word)
        except ValueError:
            raise ValueError(f"{word!r} is not an IP address or a network, such as 10.0.0.7 or 10.1.0.0/16") from None
        if network.prefixlen == 0:
            raise ValueError(f"{word} would trust every address; name the proxies")
        networks.append(network)
    return tuple(networks)


class SourceAddresses:
    """Finds the source address of a request."""

    def __init__(self, trusted_proxies: str) -> None:
        """`trusted_proxies` has their addresses and networks. Raises ValueError as `parse_proxies` does."""
        self._proxies = parse_proxies(trusted_proxies)

    def find(self, peer: str, forwarded_for: str | None) -> str:
        """Return the address, or the /64 network of an IPv6 address.

        It is the last address of X-Forwarded-For, all lines joined by commas, that is not a trusted proxy. It is that
        of the peer if the peer is not a trusted proxy, or if the part of the header that is read has anything but
        addresses.
        """
        if (first := _parse(peer)) is None:
            return UNKNOWN
        source = first
        for hop in reversed(_hops(forwarded_for)):
            if not self._is_proxy(source):
                break
            if (parsed := _parse(hop)) is None:
                return _shown(first)
            source = parsed
        return _shown(source)

    def _is_proxy(self, address: _Address) -> bool:
        return any(address in network for network in self._proxies)


def _hops(forwarded_for: str | None) -> Sequence[str]:
    return () if forwarded_for is None else [hop.strip() for hop in forwarded_for.split(",")]


def _parse(text: str) -> _Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def _shown(address: _Address) -> str:
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    return str(ipaddress.IPv6Network((int(address), _SUBNET), strict=False))
