from __future__ import annotations

from tests.crash.conftest import machine
from tests.standalone.conftest import folder

__all__ = ["folder", "machine"]
