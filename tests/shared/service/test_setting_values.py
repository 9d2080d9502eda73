"""Checks of values: issuers, resources, addresses to listen on and the server of the limits."""

import pytest

from gatehouse.shared.service.setting_values import check_bind, check_issuer, check_limits_url, check_public_url


@pytest.mark.divergence("D-10")
@pytest.mark.parametrize(
    "url", ["https://as.example.com", "https://as.example.com:8443", "http://127.0.0.1:9000", "http://localhost"]
)
def test_an_issuer_is_https_or_on_loopback(url: str) -> None:
    """OAuth 2.1 1.5; RFC 8414 2."""
    assert check_issuer(url) == check_public_url(url) == url


def test_a_resource_may_have_a_path() -> None:
    assert check_public_url("https://mcp.example.com/mcp") == "https://mcp.example.com/mcp"


@pytest.mark.divergence("D-26")
@pytest.mark.parametrize(
    ("url", "remediation"),
    [
        ("http://as.example.com", "must be https"),
        ("http://0.0.0.0:9000", "must be https"),
        ("http://127.0.0.1.evil.example", "must be https"),
        ("ftp://as.example.com", "must be https"),
        ("as.example.com", "must be https"),
        ("", "must be https"),
        ("https://as.example.com/", "ends with a slash"),
        ("https://as.example.com/tenant/", "ends with a slash"),
        ("https://as.example.com/tenant", "has a path"),
        ("https://as.example.com?x=1", "query or a fragment"),
        ("https://as.example.com?", "query or a fragment"),
        ("https://as.example.com#x", "query or a fragment"),
        ("https://as.example.com#", "query or a fragment"),
        ("https://as.example.com#/", "ends with a slash"),
    ],
)
def test_an_invalid_issuer_is_refused_with_its_remediation(url: str, remediation: str) -> None:
    with pytest.raises(ValueError, match=remediation):
        check_issuer(url)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("https:", id="no-host"),
        pytest.param("https:///as", id="an-empty-host"),
        pytest.param("https://admin:hunter2@as.example.com", id="user-information"),
        pytest.param("https://as.example.com:99999", id="no-such-port"),
        pytest.param("https://as.example.com b", id="a-space"),
        pytest.param("https://as.example.com\n", id="a-newline"),
        pytest.param('https://as.example.com"', id="a-quote"),
    ],
)
def test_an_unusable_issuer_is_refused(url: str) -> None:
    """RFC 8414 2: a URL with a host. It is published, compared exactly, and put into other URLs."""
    with pytest.raises(ValueError, match=r"^(?!.*hunter2)"):
        check_issuer(url)


@pytest.mark.parametrize("text", ["127.0.0.1:9000", "[::1]:0", "localhost:65535"])
def test_a_bind_is_a_host_and_a_port(text: str) -> None:
    assert check_bind(text) == text


@pytest.mark.parametrize(
    "text", ["", "9000", ":9000", "host", "host:", "host:x", "host:-1", "host:65536", "host:٣", "host: 1"]
)
def test_an_invalid_bind_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be HOST:PORT"):
        check_bind(text)


@pytest.mark.parametrize(
    "url",
    [
        *("", "127.0.0.1:6379", "http://127.0.0.1", "redis+sentinel://h", "unix:///run/redis.sock", "redis://[::1"),
        *("redis://", "redis://h:x", "redis://h:0", "redis://h/name", "redis://h/1?a=b", "redis://h#1"),
    ],
)
def test_an_unusable_limits_url_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match="must be redis://HOST:PORT/NUMBER"):
        check_limits_url(url)
