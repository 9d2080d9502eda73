"""Makes the moves that the plan of keys' lives says are due, and those that an admin asks for."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from gatehouse.authserver.administration import Refused
from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.authserver.keys.lifecycle import Move, Policy, plan, signer
from gatehouse.authserver.keys.sealed_keys import (
    SEALED_OTHERWISE,
    DecryptedKeys,
    NoUsableKey,
    SealedKeys,
    add_key,
    lock_keys,
)
from gatehouse.authserver.settings import Settings
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.audit import AuditAction, AuditEvent, AuditRows

CANNOT_SEAL = "No key opens with this sealing key, so none can be made. Put the right one back first."

SERVER = "server:maintenance"
"""The actor of what happens by itself."""

_DAY = 86400


def policy_of(settings: Settings) -> Policy:
    """Return how long keys live here."""
    return Policy(alg=settings.signing_algorithm, period=settings.key_rotation_days * _DAY)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Moves the keys of one installation. Any number of processes may do so at once: one of them makes each move."""

    database: Database
    sealed_keys: SealedKeys
    policy: Policy
    audit: AuditRows
    clock: Clock
    actor: str = SERVER

    def run(self) -> bool:
        """Make every move that is due, in one transaction. Tell whether there was any.

        An installation without a key that opens is left alone: to make one would hide that they are lost.
        """
        with self.database.read() as session:
            contents = self.sealed_keys.read(session)
        moves = self._due(contents)
        if contents.undecryptable or not contents.keys or not moves:
            return False
        # Made before the lock is taken: an RSA key takes a second.
        fresh = SigningKey.generate(self.policy.alg) if any(move.kid is None for move in moves) else None
        with self.database.write() as session:
            lock_keys(session)
            contents = self.sealed_keys.read(session)
            # Another process may have made them meanwhile.
            self._make(session, contents, self._due(contents), fresh)
        return True

    def may_sign(self, contents: DecryptedKeys) -> bool:
        """Tell whether there is a key that may sign before the moves that are due are made."""
        return signer(int(self.clock()), contents.lives(), self.policy) is not None

    def _due(self, contents: DecryptedKeys) -> list[Move]:
        # Of a key that does not open nothing is known; but it must not keep the place of the one that signs.
        closed = (row for row in contents.key_rows if row.kid not in contents.keys)
        displaced = [Move("retire", row.kid) for row in closed if row.state == "active"]
        return [*displaced, *plan(int(self.clock()), contents.lives(), self.policy)]

    def publish(self, session: Session) -> SigningKeyRow:
        """Publish a next key now. It takes over after the lead.

        Raises:
            Refused: there is a next key, or none that opens.
        """
        lock_keys(session)
        contents = self.sealed_keys.read(session)
        if (waiting := next((row for row in contents.key_rows if row.state == "next"), None)) is not None:
            raise Refused(f"The next key is published already: {waiting.kid}. See: authserver key list")
        if contents.sealer is None:
            raise Refused(CANNOT_SEAL)
        fresh = SigningKey.generate(self.policy.alg)
        self._make(session, contents, [Move("publish")], fresh)
        return session.get_one(SigningKeyRow, fresh.kid)

    def revoke(self, session: Session, kid: str) -> None:
        """Drop a key at once, with every token that it signed. If it was the active one, another one signs now.

        Raises:
            Refused: there is no such key, or no other key or pepper that opens.
        """
        lock_keys(session)
        row = session.get(SigningKeyRow, kid)
        if row is None:
            raise Refused(f"There is no key {kid}. List them with: authserver key list")
        self._record(session, AuditAction.KEY_REVOKE, row)
        sealer = self.sealed_keys.read(session).sealer
        session.delete(row)
        session.flush()
        contents = replace(self.sealed_keys.read(session), sealer=sealer)
        if sealer is None or contents.undecryptable:
            raise Refused(CANNOT_SEAL)
        self._make(session, contents, self._due(contents))

    def _make(
        self, session: Session, contents: DecryptedKeys, moves: Sequence[Move], fresh: SigningKey | None = None
    ) -> None:
        rows = {row.kid: row for row in contents.key_rows}
        for move in moves:
            row = rows[move.kid] if move.kid is not None else self._add(session, contents, fresh)
            _move(session, row, move, int(self.clock()))
            # At once: the place of the active key has to be free before another one takes it.
            session.flush()
            if move.action != "publish":
                self._record(session, AuditAction(f"key.{move.action}"), row)

    def _add(self, session: Session, contents: DecryptedKeys, fresh: SigningKey | None) -> SigningKeyRow:
        if contents.sealer is None:
            raise NoUsableKey(SEALED_OTHERWISE)
        key = fresh or SigningKey.generate(self.policy.alg)
        row = add_key(session, contents.sealer, self.sealed_keys.issuer, key, "next", int(self.clock()))
        self._record(session, AuditAction.KEY_CREATE, row)
        return row

    def _record(self, session: Session, action: AuditAction, row: SigningKeyRow) -> None:
        event = AuditEvent(action, "allowed", actor=self.actor, object=row.kid, detail={"alg": row.alg})
        session.execute(self.audit.insert(event))


def _move(session: Session, row: SigningKeyRow, move: Move, now: int) -> None:
    # To publish a key is to add it: a new row is a next key as it is.
    if move.action == "activate":
        row.state, row.activated_at = "active", now
    elif move.action == "retire":
        row.state, row.retired_at = "retiring", now
    elif move.action == "remove":
        session.delete(row)
