"""Resource identifiers: the canonical form, and what is invalid."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gatehouse.shared.protocol.resource_identifiers import (
    InvalidResourceIdentifier,
    is_loopback,
    is_protected_transport,
    parse_resource_identifier,
)

CANONICAL = "https://mcp.example.com/mcp"
URI_LIKE = st.tuples(
    st.sampled_from(["https://", "HTTP://", "http://"]),
    st.text("aB1.-[]:%@*", max_size=12),
    st.sampled_from(["", ":443", ":80", ":8443", ":", ":0443"]),
    st.text("aB/.%2eE~:@", max_size=12).map(lambda path: f"/{path}") | st.just(""),
).map("".join)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        (CANONICAL, CANONICAL),
        ("HTTPS://MCP.Example.COM/mcp", CANONICAL),
        ("https://mcp.example.com:443/mcp", CANONICAL),
        ("https://mcp.example.com:/mcp", CANONICAL),
        ("https://mcp.example.com/", "https://mcp.example.com"),
        ("https://mcp.example.com", "https://mcp.example.com"),
        ("http://127.0.0.1:80/mcp", "http://127.0.0.1/mcp"),
        ("http://127.0.0.1:8000/mcp", "http://127.0.0.1:8000/mcp"),
        ("https://[2001:DB8::1]:8443/mcp", "https://[2001:db8::1]:8443/mcp"),
    ],
)
def test_an_identifier_has_one_canonical_form(text: str, canonical: str) -> None:
    """RFC 3986 6.2.2.1, 6.2.3; MCP 2026-07-28, "Canonical Server URI"."""
    assert parse_resource_identifier(text) == canonical


@pytest.mark.parametrize(
    "other",
    [
        "https://mcp.example.com/mcp/",
        "https://mcp.example.com/MCP",
        "https://mcp.example.com//mcp",
        "https://mcp.example.com/mc%70",
        "https://mcp.example.com:80/mcp",
        "https://mcp.example.com.evil.example/mcp",
        "https://mcp.example.com",
        "http://mcp.example.com/mcp",
    ],
)
def test_another_path_port_or_scheme_is_another_resource(other: str) -> None:
    assert parse_resource_identifier(other) != CANONICAL


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/mcp",
        "mcp.example.com/mcp",
        "//mcp.example.com/mcp",
        "https:mcp.example.com",
        "https:///mcp",
        "https://:443/mcp",
        "ftp://mcp.example.com",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "urn:example:mcp",
        "https://user@mcp.example.com/mcp",
        "https://mcp.example.com@evil.example/mcp",
        "https://mcp.example.com/mcp#fragment",
        "https://mcp.example.com/mcp#",
        "https://mcp.example.com/mcp?query",
        "https://mcp.example.com/mcp?",
        "https://mcp.example.com/../mcp",
        "https://mcp.example.com/./mcp",
        "https://mcp.example.com/mcp/..",
        "https://mcp.example.com:99999/mcp",
        "https://mcp.example.com:port/mcp",
        "https://[::1/mcp",
        "https://[v1.a]/mcp",
        "https://evil.example[::1]/mcp",
        "https://[::1].evil.example/mcp",
        "https://[::1]8443/mcp",
        "https://mcp.example.com/m cp",
        "https://mcp.example.com/mcp\n",
        "https://mcp.example.com\\@evil.example/mcp",
        "https://mcp.exämple.com/mcp",
        "https://mcp.example.com/\x00",
        'https://mcp.example.com/"',
        "https://mcp.example.com/" + "a" * 500,
    ],
    ids=repr,
)
def test_an_invalid_resource_identifier_is_refused_and_not_repeated(text: str) -> None:
    """RFC 8707 2: an absolute URI without a fragment. The other rules are this project's."""
    with pytest.raises(InvalidResourceIdentifier) as refusal:
        parse_resource_identifier(text)
    assert "example" not in str(refusal.value)


@given(URI_LIKE)
def test_canonicalization_is_idempotent(text: str) -> None:
    try:
        canonical = parse_resource_identifier(text)
    except InvalidResourceIdentifier:
        return
    assert parse_resource_identifier(canonical) == canonical


@given(st.text(max_size=40) | URI_LIKE)
def test_no_text_raises_another_error(text: str) -> None:
    try:
        assert parse_resource_identifier(text).startswith(("https://", "http://"))
    except InvalidResourceIdentifier as refusal:
        assert str(refusal)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "[::1]", "LOCALHOST"])
def test_plain_http_is_protected_on_loopback(host: str) -> None:
    """OAuth 2.1 1.5."""
    assert is_loopback(f"http://{host}:9000")
    assert is_protected_transport(f"http://{host}:9000/mcp")


@pytest.mark.parametrize(
    "host", ["as.example.com", "localhost.evil.example", "127.0.0.1.evil.example", "0.0.0.0", "[::]", "10.0.0.1", ""]
)
def test_plain_http_is_not_protected_elsewhere(host: str) -> None:
    assert not is_loopback(f"http://{host}:9000")
    assert not is_protected_transport(f"http://{host}:9000")


def test_https_is_protected_and_other_schemes_are_not() -> None:
    assert is_protected_transport("https://as.example.com")
    assert not is_protected_transport("ws://localhost")
    assert not is_protected_transport("localhost:9000")
