"""ledctl of ledmon: lights of enclosures that the kernel has no files for (SGPIO, SES-2, AHCI, VMD)."""

from __future__ import annotations

from agent.errors import CommandFailed
from agent.host import process

TIMEOUT_S = 30.0


def is_installed() -> bool:
    return process.find_program("ledctl") is not None


async def locate(node: str, *, on: bool) -> str:
    """Switch the locate light of a block device. "" when done, else what ledctl says against it."""
    try:
        await process.run(["ledctl", f"{'locate' if on else 'locate_off'}={node}"], timeout_s=TIMEOUT_S)
    except CommandFailed as error:
        return f"ledctl: {' '.join(error.stderr.split()) or f'exit code {error.exit_code}'}"
    return ""
