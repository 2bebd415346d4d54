"""Asks the kernel's ublk driver about a device, as a program of its own: `python ublk_control.py info|stop|delete ID`.

The driver takes commands through io_uring only (linux/ublk_cmd.h, IORING_OP_URING_CMD on /dev/ublk-control), and some
of them wait, so they are made in a child that can be killed. A target removes the devices that it serves itself; those
of a target that died are removed here. Nothing of the agent is imported, to start fast.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import struct
import sys

CONTROL = "/dev/ublk-control"
ABSENT = 3
"""Exit code: there is no such device."""

_GET_INFO = 2 << 30 | 32 << 16 | ord("u") << 8 | 0x02  # _IOR('u', 0x02, struct ublksrv_ctrl_cmd)
_DELETE = 3 << 30 | 32 << 16 | ord("u") << 8 | 0x05  # _IOWR('u', 0x05, struct ublksrv_ctrl_cmd)
_STOP = 3 << 30 | 32 << 16 | ord("u") << 8 | 0x07  # _IOWR('u', 0x07, struct ublksrv_ctrl_cmd)

_SYS_IO_URING_SETUP, _SYS_IO_URING_ENTER = 425, 426
_SETUP_SQE128 = 1 << 10
_OP_URING_CMD = 46
_ENTER_GETEVENTS = 1
_OFFSET_CQ_RING, _OFFSET_SQES = 0x8000000, 0x10000000
_PARAMS = struct.Struct("=10I 8I Q 8I Q")  # struct io_uring_params with its sq_off and cq_off
_INFO = struct.Struct("=4H 2I i I 2Q 2I 2Q")  # struct ublksrv_ctrl_dev_info


def info(device: int) -> dict[str, object]:
    """`state` as the driver numbers it, `pid` of the server as it called itself, `served`: a server has it open."""
    buffer = ctypes.create_string_buffer(_INFO.size)
    _command(_GET_INFO, device, ctypes.addressof(buffer), _INFO.size)
    found = _INFO.unpack(buffer.raw)
    return {"state": found[2], "pid": found[6], "served": _is_open(device)}


def stop(device: int) -> None:
    """End the block device; what waits for it fails, and so does what whoever has it open still does."""
    _command(_STOP, device)


def delete(device: int) -> None:
    """Remove a device. Waits until nobody has it open, neither a server nor a filesystem."""
    _command(_DELETE, device)


def _is_open(device: int) -> bool:
    """Whether a server has it: the driver lets one open the device at a time."""
    try:
        os.close(os.open(f"/dev/ublkc{device}", os.O_RDWR))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return True
    return False


def _command(operation: int, device: int, address: int = 0, length: int = 0) -> None:
    """One command through a ring of its own. OSError with the driver's errno."""
    control = os.open(CONTROL, os.O_RDWR | os.O_CLOEXEC)
    parameters = ctypes.create_string_buffer(_PARAMS.size)
    struct.pack_into("=I", parameters, 8, _SETUP_SQE128)
    ring = _syscall(_SYS_IO_URING_SETUP, 1, parameters)
    values = _PARAMS.unpack(parameters.raw)
    sq, cq = values[10:19], values[19:28]
    submissions = mmap.mmap(ring, sq[6] + 4 * values[0], mmap.MAP_SHARED, offset=0)
    entries = mmap.mmap(ring, 128 * values[0], mmap.MAP_SHARED, offset=_OFFSET_SQES)
    completions = mmap.mmap(ring, cq[5] + 16 * values[1], mmap.MAP_SHARED, offset=_OFFSET_CQ_RING)
    struct.pack_into("=BBHiIIQ", entries, 0, _OP_URING_CMD, 0, 0, control, operation, 0, 0)
    struct.pack_into("=IHHQQHHI", entries, 48, device, 0xFFFF, length, address, 0, 0, 0, 0)
    struct.pack_into("=I", submissions, sq[6], 0)
    struct.pack_into("=I", submissions, sq[1], 1)
    _syscall(_SYS_IO_URING_ENTER, ring, 1, 1, _ENTER_GETEVENTS, None, 0)
    (result,) = struct.unpack_from("=i", completions, cq[5] + 8)
    if result < 0:
        raise OSError(-result, os.strerror(-result))


def _syscall(number: int, *arguments: object) -> int:
    libc = ctypes.CDLL(None, use_errno=True)
    result: int = libc.syscall(ctypes.c_long(number), *arguments)
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result


def main(action: str, device: str) -> int:
    try:
        if action == "info":
            sys.stdout.write(json.dumps(info(int(device))))
        else:
            {"stop": stop, "delete": delete}[action](int(device))
    except OSError as error:
        if error.errno not in (errno.ENODEV, errno.ENOENT):
            raise
        return ABSENT
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
