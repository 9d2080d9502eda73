"""Access tokens that come back: to be revoked, or to be asked about (RFC 7009, RFC 7662)."""

import contextlib
import json
import secrets
from collections.abc import Mapping
from functools import lru_cache

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.status_lists import is_live
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.tokens.indices import Index
from gatehouse.shared.protocol import base64url, jws, token_validation
from gatehouse.shared.protocol.claims import ACCESS_TOKEN_TYPE, AccessClaims, InvalidClaims, StatusReference
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.status_list import parse_list_uri

_NOWHERE = Index("0" * 12, 0)
"""Asked about where a token names no index, so that it costs the same queries."""

_published = lru_cache(maxsize=8)(jws.parse_key_set)


class InactiveToken(Exception):
    """The text is no token of this issuer, or no longer one.

    `reason` is for the operator, and so is the `jti`, where the token was signed here.
    """

    def __init__(self, reason: str, jti: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.jti = jti


class TokenReader:
    """Tells whether a text is a live access token of one issuer, at the same cost whatever it is."""

    def __init__(self, database: Database, issuer: str, clock: Clock) -> None:
        self._database = database
        self._issuer = issuer
        self._clock = clock

    def read(
        self, token: str, keys: KeyRing, *, client_id: str | None = None, aud: str | None = None
    ) -> tuple[AccessClaims, Index]:
        """Return what a live token says, and where its status stands; only of this client, or for this resource.

        Raises:
            InactiveToken: not signed by a published key, of another client or for another resource, expired, revoked,
                or issued before there were status lists.
            SQLAlchemyError: the database is away.
        """
        claims, reason = self._verify(token, keys)
        index = self._index(claims.status if claims else None)
        with self._database.read() as session:
            known = index or _NOWHERE
            live = is_live(session, known.list_id, known.idx)
        if claims is None:
            raise InactiveToken(reason)
        try:
            token_validation.check_issuer(claims, self._issuer)
            token_validation.check_lifetime(claims)
            token_validation.check_time(claims, self._clock())
        except InvalidClaims as error:
            raise InactiveToken(str(error), claims.jti) from None
        if client_id not in {None, claims.client_id}:
            raise InactiveToken("the token is another client's", claims.jti)
        if aud not in {None, claims.aud}:
            raise InactiveToken("the token is for another resource", claims.jti)
        if index is None:
            raise InactiveToken("the token has no status here", claims.jti)
        if not live:
            raise InactiveToken("revoked", claims.jti)
        return claims, index

    def _verify(self, token: str, keys: KeyRing) -> tuple[AccessClaims | None, str]:
        """Verify one signature: the token's, or one that is nobody's where the token has no key to be tried."""
        try:
            header = jws.read_header(token)
        except jws.InvalidToken as error:
            _spend_a_verification(keys.signing_key.alg)
            return None, error.reason
        key = _published(keys.jwks).get(header.kid or "")
        if key is None or key.alg != header.alg or header.typ != ACCESS_TOKEN_TYPE:
            _spend_a_verification(keys.signing_key.alg)
            return None, "no access token under a published key"
        try:
            verified = jws.verify(token, header, key)
            token_validation.check_restrictions(verified)
            return AccessClaims.from_json(verified), ""
        except (jws.InvalidToken, InvalidClaims) as error:
            return None, str(error)

    def _index(self, status: StatusReference | None) -> Index | None:
        list_id = parse_list_uri(self._issuer, status.uri) if status else None
        return Index(list_id, status.idx) if status and list_id else None


def _spend_a_verification(alg: str) -> None:
    token, header, key = _decoy(alg)
    with contextlib.suppress(jws.InvalidToken):
        jws.verify(token, header, key)


@lru_cache
def _decoy(alg: str) -> tuple[str, jws.Header, jws.VerificationKey]:
    """Make a token that nobody signed, and the key of nobody to try it with."""
    header: Mapping[str, str] = {"alg": alg, "typ": ACCESS_TOKEN_TYPE}
    signature = secrets.token_bytes(255 if alg == "RS256" else 63)
    token = ".".join(map(base64url.encode, (json.dumps(header).encode(), b"{}", b"\0" + signature)))
    return token, jws.read_header(token), jws.decoy_key(alg)
