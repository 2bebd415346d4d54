"""The lab's disk image: Debian packages only, built once by mmdebstrap and cached outside the repository."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
MIRROR = os.environ.get("QUARRY_LAB_MIRROR", "http://deb.debian.org/debian")
# 6.12: Debian 12's own 6.1 has NVMe/TCP too, the backport is what is measured in the lab's notes.
KERNEL = "linux-image-amd64/trixie-backports,linux-base/trixie-backports"
PACKAGES = (
    "btrfs-progs",
    "e2fsprogs",
    "fio",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "nvme-cli",
    "procps",
    "python3",
    "tini",
    "udev",
    "util-linux",
    "xfsprogs",
    "zstd",
)
SIZE = "8G"

# Enough to find the root disk; everything else is loaded from there.
INITRAMFS_MODULES = ("virtio_pci", "virtio_blk", "ext4")

INIT = """\
#!/bin/sh
# The machine's first program: the repository is mounted, and the rest is Python (tests/lab/guest.py).
set -e
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
modprobe -a 9pnet_virtio 9p virtio_console
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro checkout /checkout
exec tini -g -- python3 /checkout/tests/lab/guest.py "$@"
"""


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a raw disk that is never written to, and kernel and initramfs beside it."""

    disk: Path
    kernel: Path
    initrd: Path


def cache_dir() -> Path:
    base = os.environ.get("QUARRY_LAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quarry-lab"
    return Path(base).expanduser().absolute()


def ensure(refresh: bool = False) -> Image:
    """The image, built when there is none of this recipe (some minutes). Images of older recipes are removed."""
    recipe = hashlib.sha256(repr((SUITE, KERNEL, PACKAGES, SIZE, INITRAMFS_MODULES, INIT)).encode()).hexdigest()[:12]
    folder = cache_dir() / recipe
    image = Image(folder / "root.img", folder / "vmlinuz", folder / "initrd")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir() / "lock"):
        if refresh or not image.disk.exists():
            for old in cache_dir().iterdir():
                if old.is_dir():
                    shutil.rmtree(old)
            print(f"building the lab's image in {folder} (once, some minutes)", flush=True)
            _build(image)
    return image


def _build(image: Image) -> None:
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")):
        if shutil.which(tool) is None:
            raise SystemExit(f"make lab needs {tool}: apt install {package}")
    with tempfile.TemporaryDirectory(prefix="build-", dir=image.disk.parent.parent) as work:
        root = Path(work, "root")
        _debootstrap(root, Path(work))
        made = Path(work, "image")
        made.mkdir()
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile((root / name).resolve(), made / name.partition(".")[0])
        _make_disk(root, made / "root.img")
        made.replace(image.disk.parent)


def _debootstrap(root: Path, work: Path) -> None:
    init = work / "lab-init"
    init.write_text(INIT)
    modules = "\\n".join(INITRAMFS_MODULES)
    hooks = [
        # Before the kernel is unpacked, so that its initramfs is made once and small.
        f"""mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" "$1/checkout" """
        f"""&& printf 'MODULES=list\\nCOMPRESS=zstd\\n' > "$1/etc/initramfs-tools/conf.d/lab" """
        f"""&& printf '{modules}\\n' > "$1/usr/share/initramfs-tools/modules.d/lab" """,
    ]
    argv = ["mmdebstrap", "--variant=minbase", "--architectures=amd64", f"--include={','.join((*PACKAGES, KERNEL))}"]
    argv += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    # A second folder of the kernel's scripts, which makes them want a newer run-parts than this Debian's.
    argv += ["--dpkgopt=path-exclude=/usr/share/kernel/*"]
    argv += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    argv += [f"--essential-hook={hook}" for hook in hooks]
    argv += [f'--customize-hook=install -m 755 {init} "$1/usr/sbin/lab-init"']
    argv += ["--format=directory", SUITE, str(root)]
    argv += [f"deb {MIRROR} {suite} main" for suite in (SUITE, f"{SUITE}-updates", "trixie-backports")]
    subprocess.run(argv, check=True)


def _make_disk(root: Path, disk: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(int(SIZE.removesuffix("G")) << 30)
    subprocess.run(["mkfs.ext4", "-q", "-L", "lab", "-d", str(root), str(disk)], check=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
