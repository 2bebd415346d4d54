"""CRC32C, the header and data digest of NVMe/TCP PDUs (NVMe TCP Transport 1.0, section 3.3.1.1)."""

from __future__ import annotations

import google_crc32c

DIGEST_BYTES = 4


def crc32c(data: bytes | bytearray | memoryview) -> bytes:
    """The digest as it stands on the wire: 4 bytes, least significant first."""
    whole = data if isinstance(data, bytes) else bytes(data)
    return int(google_crc32c.value(whole)).to_bytes(DIGEST_BYTES, "little")
