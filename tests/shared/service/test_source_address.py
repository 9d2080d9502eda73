"""The source address of a request, with and without trusted proxies."""

import pytest

from gatehouse.shared.service.source_address import UNKNOWN, SourceAddresses, parse_proxies

PROXY, OTHER = "10.0.0.7", "10.0.0.8"


@pytest.mark.parametrize(
    ("peer", "shown"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::1", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", UNKNOWN),
        ("/run/server.sock", UNKNOWN),
    ],
)
def test_a_peer_is_an_address_or_a_network_of_ipv6(peer: str, shown: str) -> None:
    assert SourceAddresses("").find(peer, None) == shown


def test_no_header_is_believed_without_trusted_proxies() -> None:
    assert SourceAddresses("").find(PROXY, "192.0.2.1") == PROXY


@pytest.mark.parametrize(
    ("peer", "header", "source"),
    [
        pytest.param(PROXY, "192.0.2.1", "192.0.2.1", id="proxy"),
        pytest.param(PROXY, "198.51.100.9, 192.0.2.1", "192.0.2.1", id="an address that the client invented"),
        pytest.param(PROXY, "192.0.2.1, 10.1.2.3", "192.0.2.1", id="two proxies"),
        pytest.param(PROXY, "192.0.2.1,10.1.2.3,10.1.2.4", "192.0.2.1", id="three proxies, without spaces"),
        pytest.param(PROXY, "10.1.2.3", "10.1.2.3", id="proxies only"),
        pytest.param(PROXY, "2001:db8::1", "2001:db8::/64", id="IPv6"),
        pytest.param(PROXY, None, PROXY, id="no header"),
        pytest.param(PROXY, "", PROXY, id="empty header"),
        pytest.param(PROXY, "192.0.2.1:1234", PROXY, id="port"),
        pytest.param(PROXY, "unknown", PROXY, id="no address"),
        pytest.param(PROXY, "192.0.2.1, x", PROXY, id="malformed at the end"),
        pytest.param(PROXY, "x, 192.0.2.1", "192.0.2.1", id="malformed where nothing is read"),
        pytest.param(PROXY, "x, 10.1.2.3", PROXY, id="malformed behind a proxy"),
        pytest.param("::ffff:10.0.0.7", "192.0.2.1", "192.0.2.1", id="proxy over a socket of IPv6"),
        pytest.param("fd00::7", "192.0.2.1", "192.0.2.1", id="proxy with IPv6"),
        pytest.param(OTHER, "192.0.2.1", OTHER, id="another peer"),
        pytest.param("", "192.0.2.1", UNKNOWN, id="a peer without an address"),
    ],
)
def test_the_last_address_that_is_no_proxy_is_the_source(peer: str, header: str | None, source: str) -> None:
    assert SourceAddresses("10.0.0.7 10.1.0.0/16 fd00::/8").find(peer, header) == source


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("10.0.0.7,10.0.0.8", "is not an IP address or a network"),
        ("proxy.internal", "'proxy.internal' is not an IP address"),
        ("10.0.0.7/8", "is not an IP address or a network"),
        ("*", "is not an IP address"),
        ("0.0.0.0/0", "would trust every address"),
        ("10.0.0.7 ::/0", "would trust every address"),
    ],
)
def test_proxies_must_be_named_exactly(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_proxies(text)
