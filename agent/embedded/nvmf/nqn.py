"""Which strings are NVMe Qualified Names, by the rules of the real target (NVM Express Base 2.0, section 4.5)."""

from __future__ import annotations

import re
import uuid

DISCOVERY_NQN = "nqn.2014-08.org.nvmexpress.discovery"
NQN_BYTES_MAX = 223
_UUID_PREFIX = "nqn.2014-08.org.nvmexpress:uuid:"
_LABEL = "[A-Za-z](?:[A-Za-z0-9-]{0,62}[A-Za-z0-9])?"
_NAMED = re.compile(rf"nqn\.[0-9]{{4}}-[0-9]{{2}}\.{_LABEL}(?:\.{_LABEL})*:.+", re.DOTALL)


def is_valid(nqn: str) -> bool:
    """True for the discovery NQN, `nqn.2014-08.org.nvmexpress:uuid:<uuid>` and `nqn.yyyy-mm.reverse.domain:name`."""
    if len(nqn.encode()) > NQN_BYTES_MAX:
        return False
    if nqn == DISCOVERY_NQN:
        return True
    if nqn.startswith(_UUID_PREFIX):
        text = nqn.removeprefix(_UUID_PREFIX)
        try:
            return str(uuid.UUID(text)) == text.lower()
        except ValueError:
            return False
    return _NAMED.fullmatch(nqn) is not None
