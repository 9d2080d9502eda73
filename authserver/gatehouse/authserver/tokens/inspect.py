"""Would a resource server accept this access token, and if not, which check fails? For an admin who asks why."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from gatehouse.authserver.clients.registry import Client
from gatehouse.authserver.tokens.indices import Index
from gatehouse.shared import jose
from gatehouse.shared.checks import Check, run_checks
from gatehouse.shared.claims import ACCESS_TOKEN_TYPE, MAX_LIFETIME, AccessClaims, InvalidClaims
from gatehouse.shared.clock import LEEWAY, Clock
from gatehouse.shared.scopes import format_scope
from gatehouse.shared.status_list import parse_list_uri


class _Failed(Exception):
    """A check of the inspection failed."""


@dataclass(slots=True)
class Inspection:
    """The checks of one token, in the order in which a resource server makes them."""

    token: str = field(repr=False)
    issuer: str
    keys: Mapping[str, jose.VerificationKey]
    clients: Mapping[str, Client]
    resources: frozenset[str]
    clock: Clock
    is_live: Callable[[Index], bool]
    """Tells whether an index was reserved, and is not taken back."""
    header: jose.Header = field(init=False)
    claims: AccessClaims = field(init=False)

    def run(self) -> list[Check]:
        """Make every check; what follows a failure is not checked."""
        steps = (
            ("header", self._header),
            ("typ", self._typ),
            ("signature", self._signature),
            ("iss", self._issuer),
            ("aud", self._audience),
            ("lifetime", self._lifetime),
            ("time", self._time),
            ("status", self._status),
            ("client", self._client),
        )
        return run_checks(steps, (_Failed, jose.InvalidToken, InvalidClaims), stop=True)

    def _header(self) -> str:
        self.header = jose.read_header(self.token)
        return f"alg {self.header.alg}, kid {self.header.kid}"

    def _typ(self) -> str:
        if self.header.typ != ACCESS_TOKEN_TYPE:
            raise _Failed(f"typ is not {ACCESS_TOKEN_TYPE}")
        return ACCESS_TOKEN_TYPE

    def _signature(self) -> str:
        key = self.keys.get(self.header.kid or "")
        if key is None:
            raise _Failed("kid is not among the published keys")
        self.claims = AccessClaims.from_json(jose.verify(self.token, self.header, key))
        return f"jti {self.claims.jti}, scope {format_scope(self.claims.scope)}"

    def _issuer(self) -> str:
        if self.claims.iss != self.issuer:
            raise _Failed(f"iss is not {self.issuer}")
        return self.issuer

    def _audience(self) -> str:
        if self.claims.aud not in self.resources:
            raise _Failed("aud is not a registered resource")
        return self.claims.aud

    def _lifetime(self) -> str:
        lifetime = self.claims.exp - self.claims.iat
        if not 0 < lifetime <= MAX_LIFETIME:
            raise _Failed(f"the lifetime is not between 0 and {MAX_LIFETIME} s")
        return f"{lifetime} s"

    def _time(self) -> str:
        remaining = int(self.claims.exp + LEEWAY - self.clock())
        if remaining <= 0:
            raise _Failed(f"expired {-remaining} s ago, the leeway of {LEEWAY} s included")
        if self.clock() < self.claims.iat - LEEWAY:
            raise _Failed("issued in the future: compare the clocks of the two servers")
        return f"accepted for {remaining} s more"

    def _status(self) -> str:
        status = self.claims.status
        list_id = parse_list_uri(self.issuer, status.uri) if status else None
        if status is None or list_id is None:
            raise _Failed("the token has no status in a list of this issuer")
        if not self.is_live(Index(list_id, status.idx)):
            raise _Failed("revoked, by itself or together with its client")
        return f"index {status.idx} of {status.uri} is not set"

    def _client(self) -> str:
        client = self.clients.get(self.claims.client_id)
        if client is None or client.disabled:
            raise _Failed(f"{self.claims.client_id} is {'gone' if client is None else 'disabled'}")
        return f"{client.client_id} ({client.client_name})"
