"""Renews the stored key sets of trusted issuers. They are stored, so one node fetches for all."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import case, or_, select, update

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import TrustedIssuerRow
from gatehouse.authserver.workloads.issuer_keys import (
    REFETCH_INTERVAL,
    REFRESH_INTERVAL,
    check_sequence,
    is_fresh,
    is_under_way,
    is_unsettled,
    parse_issuer_keys,
    refresh_interval,
)
from gatehouse.authserver.workloads.key_fetching import FetchStopped
from gatehouse.authserver.workloads.registry import KeyLocation
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import InvalidKeySet
from gatehouse.shared.service.fetch import FetchFailed

_MAX_FAILURE: Final = 512
"""Characters of a stored failure."""

_PAUSE: Final = 0.1
"""Seconds between two looks at a fetch of another node."""

log = logging.getLogger(__name__)

_row = TrustedIssuerRow
_fetched = _row.discovery | _row.jwks_uri.is_not(None)

_UNCHANGED: Final = (
    _row.name,
    _row.issuer,
    _row.kind,
    _row.discovery,
    _row.jwks_uri,
    _row.ca_file,
    _row.bearer_token_file,
    _row.created_at,
    _row.attempted_at,
)
"""What must be as before when a fetch ends: where the keys come from, and that no later fetch has begun."""


class KeyRenewal:
    """Fetches and stores key sets."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        fetch: Callable[[str, KeyLocation], bytes],
        stop: Callable[[], object] = lambda: None,
    ) -> None:
        """`fetch` returns the key set of an issuer, or raises FetchFailed or FetchStopped. `stop` ends every fetch."""
        self._database = database
        self._clock = clock
        self._fetch = fetch
        self._stop = stop
        self._stopping = threading.Event()

    def due(self) -> list[str]:
        """Return the names of the enabled issuers whose keys must be fetched. Raises SQLAlchemyError."""
        now = int(self._clock())
        bundle = case((_row.kind == "spiffe", _row.jwks))
        columns = (_row.name, _row.attempted_at, _row.fetched_at, _row.failure, bundle.label("bundle"))
        with self._database.connect() as connection:
            rows = connection.execute(select(*columns).where(~_row.disabled, _fetched).order_by(_row.attempted_at))
            return [row.name for row in rows if _is_due(row, now)]

    def renew(self, name: str) -> None:
        """Fetch and store the keys of an issuer, unless a node did a moment ago. Never raises.

        While another node fetches them, it waits for that. A key set that cannot be used replaces none.
        """
        if self._stopping.is_set():
            return
        try:
            self._renew(name)
        except FetchStopped:
            log.info("the keys of the trusted issuer %s were not renewed, because the server stops", name)
        except Exception as error:  # noqa: BLE001 - whatever fails, the stored keys stay in use
            log.error("the keys of the trusted issuer %s were not renewed: %s", name, type(error).__name__)

    def stop(self) -> None:
        """End what runs, without a result, and renew nothing more."""
        self._stopping.set()
        self._stop()

    def _renew(self, name: str) -> None:
        now = int(self._clock())
        issuer = self._claim(name, now)
        if issuer is None:
            self._wait_for_another_node(name)
            return
        location = KeyLocation(issuer.discovery, issuer.jwks_uri, issuer.ca_file, issuer.bearer_token_file)
        try:
            document = self._fetch(issuer.issuer, location)
            _check(document, issuer, now)
        except (FetchFailed, InvalidKeySet) as error:
            changes: dict[str, Any] = {"failure": str(error)[:_MAX_FAILURE]}
        else:
            changes = {"jwks": document.decode(), "fetched_at": now, "failure": None}
        same = [column.is_not_distinct_from(getattr(issuer, column.key)) for column in _UNCHANGED]
        with self._database.write() as session:
            stored = session.execute(update(_row).where(*same).values(**changes).returning(_row.name)).first()
        if stored is not None:
            _report(name, issuer.failure, changes["failure"])

    def _claim(self, name: str, now: int) -> TrustedIssuerRow | None:
        """Begin a fetch that no other node begins. Return the issuer; None if it is not time for another fetch."""
        # A time that lies further ahead was written by a wrong clock.
        is_time = or_(_row.attempted_at <= now - REFETCH_INTERVAL, _row.attempted_at > now + REFETCH_INTERVAL)
        claim = update(_row).where(_row.name == name, ~_row.disabled, _fetched, is_time).values(attempted_at=now)
        with self._database.write() as session:
            if session.execute(claim.returning(_row.name)).first() is None:
                return None
            issuer = session.get_one(_row, name)
            session.expunge(issuer)
        return issuer

    def _wait_for_another_node(self, name: str) -> None:
        """Wait until a fetch that another node began has a result, or can have none any more."""
        while self._is_under_way(name):
            if self._stopping.wait(_PAUSE):
                return

    def _is_under_way(self, name: str) -> bool:
        state = select(_row.attempted_at, _row.fetched_at, _row.failure).where(_row.name == name)
        with self._database.connect() as connection:
            row = connection.execute(state).first()
        return row is not None and is_under_way(self._clock(), row.attempted_at, row.fetched_at, row.failure)


def _is_due(row: Any, now: int) -> bool:
    age: int = now - row.attempted_at
    interval = REFRESH_INTERVAL if row.bundle is None else refresh_interval(row.bundle.encode())
    if row.failure is not None or is_unsettled(row.attempted_at, row.fetched_at, row.failure):
        interval = REFETCH_INTERVAL
    return not -REFETCH_INTERVAL <= age < interval


def _check(document: bytes, issuer: TrustedIssuerRow, now: int) -> None:
    """Refuse a key set that must not replace the stored one. Raises InvalidKeySet."""
    parse_issuer_keys(document, issuer.kind, issuer.algorithms)
    # A stored set that is too old is not used any more, so a trust domain that begins again is accepted after that.
    if issuer.kind == "spiffe" and issuer.jwks is not None and is_fresh(now, issuer.fetched_at):
        check_sequence(document, issuer.jwks.encode())


def _report(name: str, before: str | None, failure: str | None) -> None:
    """Log the result of a fetch, if it is another one than before: one line for an outage, however long it lasts."""
    if failure is not None and failure != before:
        log.warning("the keys of the trusted issuer %s were not renewed: %s", name, failure)
    elif failure is None and before is not None:
        log.info("the keys of the trusted issuer %s are renewed again", name)
