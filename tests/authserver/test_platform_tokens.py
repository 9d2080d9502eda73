"""Platform tokens as a request presents them, and the kinds of platforms."""

from typing import Any

import pytest

from gatehouse.authserver.clients.assertions import ASSERTION_TYPE
from gatehouse.authserver.workloads.kinds import HEADER_MEMBERS, KINDS
from gatehouse.authserver.workloads.platform_token import (
    JWT_SPIFFE,
    PlatformCredentials,
    Presented,
    is_platform_token,
    trust_domain,
)
from gatehouse.shared.protocol.jws import KEY_TYPES, Header

SVID = "spiffe://example.org/ns/prod/sa/agent"


def credentials(claims: dict[str, Any]) -> PlatformCredentials:
    return PlatformCredentials("a.b.c", Header("RS256", None, None), claims, Presented.GRANT)


@pytest.mark.parametrize(
    ("subject", "domain"),
    [
        (SVID, "spiffe://example.org"),
        ("spiffe://example.org/", None),
        ("spiffe://example.org", None),
        ("spiffe:///agent", None),
        ("SPIFFE://example.org/agent", None),
        ("https://example.org/agent", None),
        ("", None),
    ],
)
def test_the_trust_domain_is_that_of_a_whole_spiffe_id(subject: str, domain: str | None) -> None:
    """SPIFFE-ID 2."""
    assert trust_domain(subject) == domain


@pytest.mark.parametrize(
    ("claims", "assertion_type", "expected"),
    [
        ({"iss": "https://platform.example.com", "sub": "agent"}, ASSERTION_TYPE, True),
        ({"sub": SVID}, ASSERTION_TYPE, True),
        ({"iss": "agent_1", "sub": "agent_1"}, ASSERTION_TYPE, False),
        ({"iss": "agent_1", "sub": "agent_1"}, JWT_SPIFFE, True),
        ({"iss": ["https://platform.example.com"], "sub": 7}, ASSERTION_TYPE, False),
        ({}, ASSERTION_TYPE, False),
    ],
)
def test_a_platform_token_is_told_from_the_assertion_of_a_client(
    claims: dict[str, Any], assertion_type: str, expected: bool
) -> None:
    assert is_platform_token(claims, assertion_type) is expected


@pytest.mark.parametrize(
    ("claims", "issuer", "subject"),
    [
        ({"iss": "https://platform.example.com", "sub": "agent"}, "https://platform.example.com", "agent"),
        ({"sub": SVID}, "spiffe://example.org", SVID),
        ({"iss": "https://spire.example.com", "sub": SVID}, "https://spire.example.com", SVID),
        ({"iss": 7, "sub": ["agent"]}, "", ""),
        ({}, "", ""),
    ],
)
def test_issuer_and_subject_are_texts(claims: dict[str, Any], issuer: str, subject: str) -> None:
    read = credentials(claims)
    assert (read.issuer, read.subject) == (issuer, subject)


def test_credentials_are_not_printed() -> None:
    assert "a.b.c" not in repr(credentials({"sub": "secret subject"}))
    assert "secret subject" not in repr(credentials({"sub": "secret subject"}))


def test_no_kind_accepts_the_type_of_another_token() -> None:
    """RFC 8725 3.11."""
    assert KINDS
    for kind in KINDS.values():
        assert not kind.types & {"at+jwt", "oauth-id-jag+jwt", "dpop+jwt", "client-authentication+jwt"}, kind.name
        assert set(kind.algorithms) <= set(KEY_TYPES), kind.name


def test_only_a_thumbprint_may_stand_in_a_header_beside_the_key() -> None:
    assert {"x5t"} == HEADER_MEMBERS


def test_only_tokens_of_github_are_for_one_use_by_default() -> None:
    """kubelet and SPIRE hand out one token for minutes, and a job of GitLab gets no second one (claude-code#89095)."""
    assert [kind.name for kind in KINDS.values() if kind.one_time] == ["github"]
