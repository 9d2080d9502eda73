"""Applies the transitions of signing keys that are due, and those that an administrator requests."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sqlalchemy.orm import Session

from gatehouse.authserver.db.database import Database
from gatehouse.authserver.db.models import SigningKeyRow
from gatehouse.authserver.keys.lifecycle import Policy, Transition, next_rotation, plan, signer
from gatehouse.authserver.keys.sealed_keys import (
    WRONG_SEALING_KEY,
    DecryptedKeys,
    NoUsableKey,
    SealedKeys,
    add_key,
    lock_keys,
)
from gatehouse.authserver.settings import Settings
from gatehouse.shared.protocol.clock import Clock
from gatehouse.shared.protocol.jws import SigningKey
from gatehouse.shared.service.administrator import CommandRefused
from gatehouse.shared.service.audit.events import AuditAction, AuditEvent
from gatehouse.shared.service.audit.rows import AuditRows

CANNOT_SEAL = (
    "No key in the database decrypts with this sealing key, so none can be added. Restore the right sealing key first."
)

SERVER = "server:maintenance"
"""The actor of transitions that no administrator requested."""

_DAY = 86400


def policy_of(settings: Settings) -> Policy:
    """Return the lifecycle policy of an installation."""
    return Policy(alg=settings.signing_algorithm, period=settings.key_rotation_days * _DAY)


@dataclass(frozen=True, slots=True)
class Rotation:
    """Rotates the signing keys of one installation. Any number of processes may run it: one applies each transition."""

    database: Database
    sealed_keys: SealedKeys
    policy: Policy
    audit: AuditRows
    clock: Clock
    actor: str = SERVER
    scheduled: Callable[[int], object] = lambda when: None
    """Called with the time of the next transition that adds or replaces a signing key, whenever it is known."""

    def run(self) -> bool:
        """Apply every transition that is due, in one transaction. Return whether there was any.

        Does nothing if no key decrypts: a new key would hide that the others are lost.
        """
        with self.database.read() as session:
            decrypted = self.sealed_keys.read(session)
        due = self._due(decrypted)
        if (when := next_rotation(decrypted.lifecycles(), self.policy)) is not None:
            self.scheduled(when)
        if decrypted.undecryptable or not decrypted.keys or not due:
            return False
        # Generated before the lock is acquired: an RSA key takes a second.
        new_key = SigningKey.generate(self.policy.alg) if any(each.kid is None for each in due) else None
        with self.database.write() as session:
            lock_keys(session)
            decrypted = self.sealed_keys.read(session)
            # Another process may have applied them meanwhile.
            self._apply(session, decrypted, self._due(decrypted), new_key)
        return True

    def may_sign(self, decrypted: DecryptedKeys) -> bool:
        """Tell whether a key may sign before the transitions that are due are applied."""
        return signer(int(self.clock()), decrypted.lifecycles(), self.policy) is not None

    def _due(self, decrypted: DecryptedKeys) -> list[Transition]:
        # An undecryptable key has no plan, but must not block the place of the active key.
        undecryptable = (row for row in decrypted.key_rows if row.kid not in decrypted.keys)
        displaced = [Transition("retire", row.kid) for row in undecryptable if row.state == "active"]
        return [*displaced, *plan(int(self.clock()), decrypted.lifecycles(), self.policy)]

    def publish(self, session: Session) -> SigningKeyRow:
        """Publish a next key now. It becomes active after the policy's lead.

        Raises:
            CommandRefused: a next key exists, or no key decrypts.
        """
        lock_keys(session)
        decrypted = self.sealed_keys.read(session)
        if (waiting := next((row for row in decrypted.key_rows if row.state == "next"), None)) is not None:
            raise CommandRefused(f"The next key is already published: {waiting.kid}. See: authserver key list")
        if decrypted.sealer is None:
            raise CommandRefused(CANNOT_SEAL)
        new_key = SigningKey.generate(self.policy.alg)
        self._apply(session, decrypted, [Transition("publish")], new_key)
        return session.get_one(SigningKeyRow, new_key.kid)

    def revoke(self, session: Session, kid: str) -> None:
        """Delete a key at once, which invalidates every token that it signed. If it was active, another one signs.

        Raises:
            CommandRefused: there is no such key, or no other key or pepper decrypts.
        """
        lock_keys(session)
        row = session.get(SigningKeyRow, kid)
        if row is None:
            raise CommandRefused(f"There is no key {kid}. List them with: authserver key list")
        self._record(session, AuditAction.KEY_REVOKE, row)
        sealer = self.sealed_keys.read(session).sealer
        session.delete(row)
        session.flush()
        decrypted = replace(self.sealed_keys.read(session), sealer=sealer)
        if sealer is None or decrypted.undecryptable:
            raise CommandRefused(CANNOT_SEAL)
        self._apply(session, decrypted, self._due(decrypted))

    def _apply(
        self,
        session: Session,
        decrypted: DecryptedKeys,
        transitions: Sequence[Transition],
        new_key: SigningKey | None = None,
    ) -> None:
        rows = {row.kid: row for row in decrypted.key_rows}
        for transition in transitions:
            row = rows[transition.kid] if transition.kid is not None else self._add(session, decrypted, new_key)
            _update(session, row, transition, int(self.clock()))
            # Now, because the old active key has to leave its state before another key enters it.
            session.flush()
            if transition.action != "publish":
                self._record(session, AuditAction(f"key.{transition.action}"), row)

    def _add(self, session: Session, decrypted: DecryptedKeys, new_key: SigningKey | None) -> SigningKeyRow:
        if decrypted.sealer is None:
            raise NoUsableKey(WRONG_SEALING_KEY)
        key = new_key or SigningKey.generate(self.policy.alg)
        row = add_key(session, decrypted.sealer, self.sealed_keys.issuer, key, "next", int(self.clock()))
        self._record(session, AuditAction.KEY_CREATE, row)
        return row

    def _record(self, session: Session, action: AuditAction, row: SigningKeyRow) -> None:
        event = AuditEvent(action, "allowed", actor=self.actor, object=row.kid, detail={"alg": row.alg})
        self.audit.record(session, event)


def _update(session: Session, row: SigningKeyRow, transition: Transition, now: int) -> None:
    # "publish" needs no update: a new row is in the state next.
    if transition.action == "activate":
        row.state, row.activated_at = "active", now
    elif transition.action == "retire":
        row.state, row.retired_at = "retiring", now
    elif transition.action == "remove":
        session.delete(row)
