"""Two keys of an issuer, and the key sets that it may publish."""

import json
from typing import Any

from gatehouse.shared.protocol.jws import SigningKey

KEY = SigningKey.generate("ES256")
OTHER_KEY = SigningKey.generate("ES256")


def key_set(*keys: Any) -> bytes:
    """Return the document of a key set."""
    return json.dumps({"keys": keys}).encode()


GOOD = key_set(KEY.public_jwk())
