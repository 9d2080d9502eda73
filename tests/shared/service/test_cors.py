"""Which origins a setting may name, and the headers of responses and preflights (Fetch, "CORS protocol")."""

import pytest

from gatehouse.shared.service.cors import REQUEST_HEADERS, CorsPolicy, parse_origins

PAGE = "https://app.example.com"
POLICY = CorsPolicy({PAGE, "http://localhost:6274"}, {"/mcp": "POST, GET", "/keys": "GET"})


@pytest.mark.parametrize(
    ("text", "origins"),
    [
        ("", set()),
        (PAGE, {PAGE}),
        (f"  {PAGE}\thttps://b.example.com ", {PAGE, "https://b.example.com"}),
        (f"{PAGE} {PAGE}", {PAGE}),
        ("HTTPS://App.Example.COM:443", {PAGE}),
        ("http://localhost:80", {"http://localhost"}),
        ("https://app.example.com:8443", {"https://app.example.com:8443"}),
        ("http://localhost:6274", {"http://localhost:6274"}),
        ("http://127.0.0.1:3000", {"http://127.0.0.1:3000"}),
        ("http://[0:0::1]:3000", {"http://[::1]:3000"}),
        ("https://[2001:DB8::0:1]", {"https://[2001:db8::1]"}),
        ("https://xn--bcher-kva.example", {"https://xn--bcher-kva.example"}),
        ("https://my_app.example.", {"https://my_app.example."}),
    ],
)
def test_origins_are_written_as_a_browser_sends_them(text: str, origins: set[str]) -> None:
    assert parse_origins(text) == origins


@pytest.mark.parametrize(
    ("origin", "problem"),
    [
        *((origin, "must be SCHEME://HOST") for origin in ("app.example.com", "https://", "https://a b", "ftp://a.b")),
        *((f"{PAGE}{more}", "without a path") for more in ("/", "/page", "?x", "#x", ":", ":0")),
        (f"{PAGE},https://b.example.com", "separate origins by spaces"),
        *((origin, "must be SCHEME://HOST") for origin in ("https://bücher.example", "https://a..b", "https://a%62")),
        *((origin, "must be SCHEME://HOST") for origin in ("file://", "chrome-extension://abcdef", "https://[::1")),
        ("https://app.example.com:65536", "no valid host or port"),
        ("https://[1::2::3]", "no valid host or port"),
        ("http://app.example.com", "must be https"),
        ("http://10.0.0.7:3000", "must be https"),
        ("http://localhost.example.com", "must be https"),
        *((origin, "wildcard") for origin in ("*", "https://*.example.com", "https://app.example.com:*")),
        *((origin, "cannot be allowed") for origin in ("null", "NULL")),
    ],
)
def test_what_is_no_origin_or_is_unsafe_is_refused(origin: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_origins(f"{PAGE} {origin}")


def test_all_wrong_origins_are_named_at_once_and_no_password() -> None:
    with pytest.raises(ValueError, match="wildcard") as refusal:
        parse_origins(f"* {PAGE} http://a.example.com https://admin:hunter2@b.example.com")
    problems = str(refusal.value).split("; ")
    assert [problem.split()[0] for problem in problems if "must" in problem] == ["http://a.example.com", "one"]
    assert "hunter2" not in str(refusal.value)
    assert PAGE not in str(refusal.value).split()


@pytest.mark.parametrize("origin", [PAGE, "HTTPS://app.example.com"])
def test_a_response_names_the_origin_of_an_allowed_page(origin: str) -> None:
    assert dict(POLICY.response_headers("/mcp", origin)) == {
        b"vary": b"Origin",
        b"access-control-allow-origin": PAGE.encode(),
        b"access-control-expose-headers": b"WWW-Authenticate, X-Request-Id, Retry-After",
    }


@pytest.mark.parametrize(
    "origin", [None, "", "null", "*", "https://evil.example", f"{PAGE}.evil.example", f"{PAGE}/", f"{PAGE},{PAGE}"]
)
def test_a_response_to_anyone_else_only_varies_by_origin(origin: str | None) -> None:
    assert POLICY.response_headers("/mcp", origin) == [(b"vary", b"Origin")]
    assert origin is None or not POLICY.allows(origin)


def test_other_paths_get_no_header() -> None:
    assert POLICY.response_headers("/mcp/", PAGE) == []


@pytest.mark.parametrize(
    ("path", "missing", "is_preflight"),
    [
        ("/mcp", "", True),
        ("/other", "", False),
        ("/mcp", "origin", False),
        ("/mcp", "access-control-request-method", False),
    ],
)
def test_only_the_options_request_of_a_browser_is_a_preflight(path: str, missing: str, is_preflight: bool) -> None:
    headers = {"origin": PAGE, "access-control-request-method": "POST"}
    headers.pop(missing, None)
    assert POLICY.is_preflight(path, headers) is is_preflight


def test_a_preflight_allows_the_headers_of_clients_and_tools_only() -> None:
    requested = (
        "authorization,mcp-param-region, Mcp-Param-A.b,x-other,mcp-param-,mcp-param-a b,mcp-param-\r,mcp-param-ä"
    )
    headers = POLICY.preflight_headers("/mcp", {"access-control-request-headers": requested})
    assert headers["Access-Control-Allow-Methods"] == "POST, GET"
    assert headers["Access-Control-Allow-Headers"].split(", ") == [
        *REQUEST_HEADERS,
        "mcp-param-region",
        "Mcp-Param-A.b",
    ]
    assert int(headers["Access-Control-Max-Age"]) > 0
    assert POLICY.preflight_headers("/keys", {})["Access-Control-Allow-Headers"].split(", ") == list(REQUEST_HEADERS)
