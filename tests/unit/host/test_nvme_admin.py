"""Commands to a controller that the kernel drives: what goes into the ioctl, and what comes of its answers."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agent.errors import FailedPrecondition, NotFound, Unavailable
from agent.host.nvme_admin import Answer, Command, to_controller

NVME_IOCTL_ADMIN_CMD = 0xC0484E41


def kernel(monkeypatch: pytest.MonkeyPatch, answer: Callable[[bytearray], int]) -> None:
    def ioctl(descriptor: int, request: int, argument: Any) -> int:
        assert request == NVME_IOCTL_ADMIN_CMD
        assert len(argument) == 72
        return answer(argument)

    monkeypatch.setattr(fcntl, "ioctl", ioctl)


async def test_a_command_and_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nvme0").touch()

    def answer(request: bytearray) -> int:
        assert (request[0], *struct.unpack_from("<I", request, 4)) == (0x06, 3)
        (address,) = struct.unpack_from("<Q", request, 24)
        assert struct.unpack_from("<I2I", request, 36) == (16, 1, 9)
        ctypes.memmove(address, b"0123456789abcdef", 16)
        struct.pack_into("<I", request, 68, 77)
        return 0x4002  # DNR and Invalid Field: only code and type are told

    kernel(monkeypatch, answer)
    found = await to_controller(tmp_path / "nvme0")(Command(0x06, nsid=3, cdw10=1, cdw11=9, reads=16))
    assert found == Answer(0x002, 77, b"0123456789abcdef")


async def test_what_cannot_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotFound):
        await to_controller(tmp_path / "nvme0")(Command(0x06))
    (tmp_path / "nvme0").touch()
    with pytest.raises(Unavailable, match="did not answer"):
        await to_controller(tmp_path / "nvme0")(Command(0x06))

    def denied(request: bytearray) -> int:
        raise PermissionError(errno.EACCES, "Permission denied")

    kernel(monkeypatch, denied)
    with pytest.raises(FailedPrecondition, match="as root"):
        await to_controller(tmp_path / "nvme0")(Command(0x06))
