"""Key rotation in the test process, as the server's maintenance does it."""

from functools import partial

from gatehouse.authserver.app import Services
from gatehouse.authserver.keys.encryption import load_sealing_key
from gatehouse.authserver.keys.rotation import Rotation, policy_of
from gatehouse.authserver.keys.sealed_keys import SealedKeys
from gatehouse.shared.protocol.clock import Clock
from support.authserver import administrator


def rotation_of(services: Services, clock: Clock) -> Rotation:
    """Return the rotation of another process on the same installation. It loads the sealing key now."""
    settings = services.settings
    sealed_keys = SealedKeys(partial(load_sealing_key, settings), settings.issuer)
    return Rotation(services.database, sealed_keys, policy_of(settings), administrator(settings, clock).audit, clock)
