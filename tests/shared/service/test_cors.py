"""The headers of responses and preflights (Fetch, "CORS protocol")."""

import pytest

from gatehouse.shared.service.cors import REQUEST_HEADERS, CorsPolicy

PAGE = "https://app.example.com"
POLICY = CorsPolicy({PAGE, "http://localhost:6274"}, {"/mcp": "POST, GET", "/keys": "GET"})


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
