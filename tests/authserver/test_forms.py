"""Which forms the server keeps in memory after it parsed them."""

from typing import Any
from urllib.parse import parse_qsl

import pytest
from support.authserver import FORM

from gatehouse.authserver import http
from gatehouse.authserver.http import BadRequest, Request, parse_form

GRANT = b"grant_type=client_credentials"


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every body that is parsed, and not found in memory."""
    bodies: list[str] = []

    def note(body: str, **options: Any) -> list[tuple[str, str]]:
        bodies.append(body)
        return parse_qsl(body, **options)

    monkeypatch.setattr(http, "parse_qsl", note)
    return bodies


def parse_twice(body: bytes) -> None:
    first, second = (parse_form(Request({"content-type": FORM}, body)) for _ in range(2))
    assert first == second


def test_a_form_without_credentials_is_parsed_once(parsed: list[str]) -> None:
    parse_twice(GRANT + b"&resource=https%3A%2F%2Fa.example&scope=remembered")
    assert len(parsed) == 1


@pytest.mark.parametrize(
    "parameter",
    [
        *(b"client_secret=s", b"client_assertion=a", b"client%5Fsecret=s", b"client_id=c&client_secret=s"),
        *(b"token=t", b"password=p", b"Scope=s", b"scope%20=s", b"code=c"),
    ],
)
@pytest.mark.parametrize("first", [False, True], ids=["last", "first"])
def test_a_form_with_any_other_parameter_is_parsed_each_time(
    parsed: list[str], parameter: bytes, *, first: bool
) -> None:
    parse_twice(parameter + b"&" + GRANT if first else GRANT + b"&" + parameter)
    assert len(parsed) == 2


def test_a_form_of_more_than_1_kib_is_parsed_each_time(parsed: list[str]) -> None:
    longest = GRANT + b"&scope=" + b"a" * (1024 - len(GRANT) - 7)
    parse_twice(longest)
    assert len(parsed) == 1
    parse_twice(longest + b"a")
    assert len(parsed) == 3


def test_a_malformed_form_is_refused_each_time(parsed: list[str]) -> None:
    for _ in range(2):
        with pytest.raises(BadRequest, match="more than once"):
            parse_form(Request({"content-type": FORM}, GRANT + b"&scope=a&scope=a"))
    assert len(parsed) == 2
