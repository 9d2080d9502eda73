"""Explains why a resource server accepts or refuses an access token, check by check."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.issue import Index
from gatehouse.shared.protocol import jws, token_validation
from gatehouse.shared.protocol.claims import ACCESS_TOKEN_TYPE, AccessClaims, InvalidClaims
from gatehouse.shared.protocol.clock import LEEWAY, Clock
from gatehouse.shared.protocol.redaction import quoted
from gatehouse.shared.protocol.scopes import format_scope
from gatehouse.shared.protocol.status_list import parse_list_uri
from gatehouse.shared.service.checks import Check, passed, run_checks

_DOTS = 2
_COMPARE_CLOCKS = "compare the clocks of the two servers"


class _Failed(Exception):
    """A check of the inspection failed."""


@dataclass(slots=True)
class Inspection:
    """The checks of one token."""

    token: str = field(repr=False)
    issuer: str
    keys: Mapping[str, jws.VerificationKey]
    find_client: Callable[[str], Client | None]
    """Returns a registered client."""
    resources: frozenset[str]
    clock: Clock
    is_active: Callable[[Index], bool]
    """Tells whether an index is reserved and not revoked."""
    header: jws.Header = field(init=False)
    claims: AccessClaims = field(init=False)

    def run(self) -> list[Check]:
        """Run every check. The claims of a token that this server did not sign are not checked."""
        reading = (("header", self._header), ("typ", self._typ), ("signature", self._signature))
        judging = (
            ("iss", self._issuer),
            ("aud", self._audience),
            ("lifetime", self._lifetime),
            ("time", self._time),
            ("status", self._status),
            ("client", self._client),
        )
        expected = (_Failed, jws.InvalidToken, InvalidClaims)
        read = run_checks(reading, expected, stop=True)
        if not passed(read):
            return [*read, *(Check(name, "not checked") for name, _ in judging)]
        return [*read, *run_checks(judging, expected)]

    def _header(self) -> str:
        if (problem := why_not_a_token(self.token)) is not None:
            raise _Failed(problem)
        self.header = jws.read_header(self.token)
        return f"alg {self.header.alg}, kid {self.header.kid}"

    def _typ(self) -> str:
        if self.header.typ != ACCESS_TOKEN_TYPE:
            raise _Failed(f"typ is not {ACCESS_TOKEN_TYPE}")
        return ACCESS_TOKEN_TYPE

    def _signature(self) -> str:
        key = self.keys.get(self.header.kid or "")
        if key is None:
            foreign = token_validation.foreign_issuer(self.token, self.issuer)
            raise _Failed(f"kid is not among the published keys{foreign}")
        claims = jws.verify(self.token, self.header, key)
        token_validation.check_restrictions(claims)
        self.claims = AccessClaims.from_json(claims)
        return f"jti {self.claims.jti}, scope {format_scope(self.claims.scope)}"

    def _issuer(self) -> str:
        token_validation.check_issuer(self.claims, self.issuer)
        return self.issuer

    def _audience(self) -> str:
        # Each resource server accepts its own tokens only: which one the token was sent to is not known here.
        if self.claims.aud not in self.resources:
            raise _Failed(f"aud is {quoted(self.claims.aud)}, which is not a registered resource")
        return self.claims.aud

    def _lifetime(self) -> str:
        token_validation.check_lifetime(self.claims)
        return f"{self.claims.exp - self.claims.iat} s from iat to exp"

    def _time(self) -> str:
        now, last = self.clock(), self.claims.exp + LEEWAY
        try:
            token_validation.check_time(self.claims, now)
        except InvalidClaims as error:
            raise _Failed(f"{error}" if now >= last else f"{error}: {_COMPARE_CLOCKS}") from None
        return f"accepted for {math.ceil(last - now)} s more"

    def _status(self) -> str:
        status = self.claims.status
        list_id = parse_list_uri(self.issuer, status.uri) if status else None
        if status is None or list_id is None:
            raise _Failed("the token has no status in a list of this issuer")
        if not self.is_active(Index(list_id, status.idx)):
            raise _Failed("revoked, on its own or together with all tokens of its client")
        return f"index {status.idx} of {status.uri} is not set"

    def _client(self) -> str:
        client = self.find_client(self.claims.client_id)
        if client is None or client.disabled:
            raise _Failed(f"{self.claims.client_id} {'does not exist' if client is None else 'is disabled'}")
        return f"{client.client_id} ({client.client_name})"


def why_not_a_token(text: str, command: str = "inspect") -> str | None:
    """Explain why a text cannot be a token, without repeating it. Return None if it may be one."""
    if not text:
        return f"standard input is empty; pipe a token into it: authserver token {command} < token.txt"
    if text[:7].lower() == "bearer ":
        return "this is an Authorization header; remove Bearer"
    if text.startswith(("{", "[", '"')):
        return "this is JSON; pass the value of its access_token, without quotes"
    if text.startswith("gths_"):
        return "this is a client secret; use it to request a token"
    if (dots := text.count(".")) != _DOTS:
        return f"a token has {_DOTS} dots, and this text has {dots}: it may have been truncated"
    return None
