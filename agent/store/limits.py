"""How far a reader of changes may fall behind."""

from __future__ import annotations

KEPT_CHANGES = 4096
"""Changes kept in the log. Who falls further behind lists again; about 1 KiB each."""

BUFFER_EVENTS = 1024
"""Events a reader may fall behind; beyond, listing again is cheaper than catching up."""
