"""Which origins a setting may name."""

import pytest

from gatehouse.shared.service.origins import parse_origins

PAGE = "https://app.example.com"


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
