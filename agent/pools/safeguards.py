"""What has to hold of a pool before it serves: nothing flushed is lost at a power cut, nothing is shown to others."""

from __future__ import annotations

from typing import NamedTuple

from agent.pools.write_caches import WriteCaches
from agent.pools.zeroing import Zeroing


class Safeguards(NamedTuple):
    caches: WriteCaches
    zeroing: Zeroing
