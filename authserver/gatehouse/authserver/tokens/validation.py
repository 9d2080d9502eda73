"""Validates the access tokens that revocation and introspection requests name (RFC 7009, RFC 7662)."""

import contextlib
import json
import secrets
from collections.abc import Mapping
from functools import lru_cache

from gatehouse.authserver.credentials.client_jwks import decoy_key
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.keys.store import KeyRing
from gatehouse.authserver.tokens.issue import Index
from gatehouse.authserver.tokens.status_lists import is_active
from gatehouse.shared.protocol import jws, token_validation
from gatehouse.shared.protocol.claims import ACCESS_TOKEN_TYPE, AccessClaims, InvalidClaims, StatusReference
from gatehouse.shared.protocol.encoding import encode_base64url
from gatehouse.shared.protocol.key_sets import parse_key_set
from gatehouse.shared.protocol.status_list import parse_list_uri

_NO_INDEX = Index("0" * 12, 0)
"""Looked up for a token without an index, so that it costs the same queries."""

_parse_keys = lru_cache(maxsize=8)(parse_key_set)


class InactiveToken(Exception):
    """The text is not a valid token of this issuer.

    `reason` is for the operator, as is `jti`, which is set if this server signed the token.
    """

    def __init__(self, reason: str, jti: str | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.jti = jti


class TokenReader:
    """Reads access tokens of one issuer, at the same cost for valid and invalid ones."""

    def __init__(self, database: Database, issuer: str) -> None:
        self._database = database
        self._issuer = issuer

    def read(
        self, token: str, keys: KeyRing, now: float, *, client_id: str | None = None, aud: str | None = None
    ) -> tuple[AccessClaims, Index]:
        """Return the claims of a token that is valid at `now`, in seconds since the epoch, and its status index.

        `client_id` and `aud` restrict the tokens to those of one client or for one resource.

        Raises:
            InactiveToken: not signed by a published key, of another client or for another resource, expired, revoked,
                or without a status.
            SQLAlchemyError: the database is unavailable.
        """
        claims, reason = self._verify(token, keys)
        index = self._index(claims.status if claims else None)
        with self._database.read() as session:
            known = index or _NO_INDEX
            active = is_active(session, known.list_id, known.idx)
        if claims is None:
            raise InactiveToken(reason)
        try:
            token_validation.check_issuer(claims, self._issuer)
            token_validation.check_lifetime(claims)
            token_validation.check_time(claims, now)
        except InvalidClaims as error:
            raise InactiveToken(str(error), claims.jti) from None
        if client_id not in {None, claims.client_id}:
            raise InactiveToken("the token belongs to another client", claims.jti)
        if aud not in {None, claims.aud}:
            raise InactiveToken("the token is for another resource", claims.jti)
        if index is None:
            raise InactiveToken("the token has no status in a list of this issuer", claims.jti)
        if not active:
            raise InactiveToken("revoked", claims.jti)
        return claims, index

    def _verify(self, token: str, keys: KeyRing) -> tuple[AccessClaims | None, str]:
        """Verify one signature: the token's, or a decoy's if no key matches the token."""
        try:
            header = jws.read_header(token)
        except jws.InvalidToken as error:
            _verify_decoy(keys.signing_key.alg)
            return None, error.reason
        key = _parse_keys(keys.jwks).get(header.kid or "")
        if key is None or key.alg != header.alg or header.typ != ACCESS_TOKEN_TYPE:
            _verify_decoy(keys.signing_key.alg)
            return None, "not an access token signed with a published key"
        try:
            verified = jws.verify(token, header, key)
            token_validation.check_restrictions(verified)
            return AccessClaims.from_json(verified), ""
        except (jws.InvalidToken, InvalidClaims) as error:
            return None, str(error)

    def _index(self, status: StatusReference | None) -> Index | None:
        list_id = parse_list_uri(self._issuer, status.uri) if status else None
        return Index(list_id, status.idx) if status and list_id else None


def _verify_decoy(alg: str) -> None:
    token, header, key = _decoy(alg)
    with contextlib.suppress(jws.InvalidToken):
        jws.verify(token, header, key)


@lru_cache
def _decoy(alg: str) -> tuple[str, jws.Header, jws.VerificationKey]:
    """Return a token with a random signature, and a key to verify it with."""
    header: Mapping[str, str] = {"alg": alg, "typ": ACCESS_TOKEN_TYPE}
    signature = secrets.token_bytes(255 if alg == "RS256" else 63)
    token = ".".join(map(encode_base64url, (json.dumps(header).encode(), b"{}", b"\0" + signature)))
    return token, jws.read_header(token), decoy_key(alg)
