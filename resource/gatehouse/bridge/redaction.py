"""Masks the bridge's own secrets and tokens wherever a server repeats them."""

from collections import deque
from typing import Any, Final

from gatehouse.shared.protocol.redaction import MASK, mask

_MIN_LENGTH: Final = 8
"""Characters. Masking a shorter secret would also change unrelated text."""

_KEPT: Final = 32
"""Secrets, of which each token request adds at most four. Older tokens have expired or were rejected."""


class SentSecrets:
    """The secrets, assertions and tokens that the bridge sent most recently."""

    def __init__(self) -> None:
        self._values: deque[str] = deque(maxlen=_KEPT)

    def add(self, *values: str) -> None:
        """Remember values that were sent or are about to be."""
        for value in values:
            if len(value) >= _MIN_LENGTH:
                if value in self._values:
                    self._values.remove(value)
                self._values.append(value)

    def mask(self, text: str) -> str:
        """Return an error or log text with these secrets masked, and with anything that looks like one."""
        return mask(self._mask_sent(text))

    def mask_values(self, value: Any, *, patterns: bool) -> Any:
        """Return a JSON value with these secrets masked in every string.

        Args:
            value: a parsed JSON value.
            patterns: also mask whatever looks like a secret. The result of a tool may contain another token, by design.
        """
        if isinstance(value, str):
            return self.mask(value) if patterns else self._mask_sent(value)
        if isinstance(value, list):
            return [self.mask_values(item, patterns=patterns) for item in value]
        if isinstance(value, dict):
            return {self._mask_sent(name): self.mask_values(item, patterns=patterns) for name, item in value.items()}
        return value

    def _mask_sent(self, text: str) -> str:
        for value in self._values:
            text = text.replace(value, MASK)
        return text
