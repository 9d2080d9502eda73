"""Status lists (draft-ietf-oauth-status-list): one bit for each token, set when it is revoked.

A list is a string of LIST_SIZE bits. Index 0 is the least significant bit of the first byte (section 4.1).
"""

import re
import zlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from gatehouse.shared.protocol.encoding import decode_base64url, encode_base64url

TYPE = "statuslist+jwt"
"""The JWS `typ` of a status list token (section 5.1)."""

MEDIA_TYPE = "application/statuslist+jwt"
"""The media type of a status list token (section 8.2)."""

LIST_SIZE = 2**17
"""Indices of one list: 16 KiB, and at most 30 KiB when signed."""

MAX_LENGTH = 64 * 1024
"""The maximum length of a signed list in characters. A longer one is not parsed."""

MAX_SIZE = 2**20
"""The maximum number of bits after decompression: a short text can decompress to a huge list."""

WINDOW = 60
"""Seconds after which a list is signed again even if unchanged, so that its `iat` shows how current it is."""

LIFETIME = 3600
"""Seconds from `iat` to `exp` of a signed list."""

POLL_INTERVAL = 5
"""Seconds that a reader should cache a list (`ttl`), and the default interval between two polls."""

MAX_LISTS = 4096
"""Lists of one issuer that a reader keeps, which is enough for five million clients (docs/scale.md)."""

PATH = "/status-lists"
"""The path of the index of lists (section 9). Each list is below it."""

LIST_ID = re.compile(r"[0-9a-f]{12}", re.ASCII)


class InvalidStatusList(ValueError):
    """The document is not a status list. The message is for the operator."""


@lru_cache(maxsize=MAX_LISTS)
def list_uri(issuer: str, list_id: str) -> str:
    """Return the URI of a list, which is also the `sub` of its token."""
    return f"{issuer}{PATH}/{list_id}"


def parse_list_uri(issuer: str, uri: str) -> str | None:
    """Return the id of a list from its URI, or None if the URI is not one of this issuer's lists."""
    prefix = f"{issuer}{PATH}/"
    list_id = uri.removeprefix(prefix)
    return list_id if uri.startswith(prefix) and LIST_ID.fullmatch(list_id) else None


def is_set(bits: bytes, index: int) -> bool:
    """Tell whether the bit of an index is set. The index must be within the list."""
    return bool(bits[index >> 3] >> (index & 7) & 1)


def set_bits(bits: bytearray, start: int, size: int = 1) -> None:
    """Set the bits of `size` indices from `start` on."""
    end = start + size
    first, last = (start + 7) >> 3, end >> 3
    if first < last:
        bits[first:last] = b"\xff" * (last - first)
    for index in (*range(start, min(first << 3, end)), *range(max(last << 3, start), end)):
        bits[index >> 3] |= 1 << (index & 7)


def encode(bits: bytes) -> dict[str, Any]:
    """Return the `status_list` claim (section 4.2)."""
    return {"bits": 1, "lst": encode_base64url(zlib.compress(bits, 9))}


def decode(claim: Any) -> bytes:
    """Return the bits of a `status_list` claim.

    Raises:
        InvalidStatusList: not a list of single bits, not zlib in base64url, more than MAX_SIZE bits, or trailing data.
    """
    if not isinstance(claim, Mapping) or claim.get("bits") != 1 or isinstance(claim["bits"], bool):
        raise InvalidStatusList("status_list is not a list of single bits")
    packed = claim.get("lst")
    if not isinstance(packed, str) or not packed:
        raise InvalidStatusList("lst is not a non-empty string")
    try:
        data = decode_base64url(packed)
        unpacker = zlib.decompressobj()
        bits = unpacker.decompress(data, MAX_SIZE // 8 + 1)
    except (ValueError, zlib.error):
        raise InvalidStatusList("lst is not base64url of zlib") from None
    if len(bits) > MAX_SIZE // 8 or not bits:
        raise InvalidStatusList(f"lst is empty, or decompresses to more than {MAX_SIZE} bits")
    if not unpacker.eof or unpacker.unused_data:
        raise InvalidStatusList("lst is truncated or has trailing data")
    return bits
