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
PACKAGES = (
    "btrfs-progs",
    "e2fsprogs",
    "fdisk",
    "fio",
    "initramfs-tools",
    "iproute2",
    "kmod",
    "lvm2",
    "nvme-cli",
    "procps",
    "python3",
    "smartmontools",
    "tini",
    "udev",
    "util-linux",
    "xfsprogs",
    "zstd",
)
SIZE = "8G"

# The kernel is of the next Debian: its own way of coming to /boot wants programs that this one does not have.
TO_BOOT = """\
#!/bin/sh
set -e
for name in vmlinuz config; do cp "/usr/lib/modules/$1/$name" "/boot/$name-$1"; done
"""

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
class Kernel:
    """Which one the machine has: `packages` of `suite`. `scripts`: what it needs to be installed here."""

    suite: str
    packages: str
    scripts: tuple[str, ...] = ()
    one_thread: bool = False
    """Emulated by one thread: its patching of code that another processor runs is too much for the emulator."""
    disks: bool = False
    """Its machine has disks of every kind, and an IOMMU."""
    memory_mib: int = 2048


USUAL = Kernel(f"{SUITE}-backports", f"linux-image-amd64/{SUITE}-backports", disks=True, memory_mib=4096)
"""Linux 6.12: Debian 12's own 6.1 has NVMe/TCP too, the backport is what is measured in the lab's notes."""

NEWER = Kernel(
    "trixie-backports",
    "linux-image-amd64/trixie-backports,linux-base/trixie-backports",
    scripts=(TO_BOOT,),
    one_thread=True,
)
"""For ublk: Linux 6.12 can crash when a server is killed under load (about one time in four here), 7.2 does not."""


@dataclass(frozen=True)
class Image:
    """What QEMU boots: a raw disk that is never written to, and kernel and initramfs beside it."""

    disk: Path
    kernel: Path
    initrd: Path


def cache_dir() -> Path:
    base = os.environ.get("QUARRY_LAB_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quarry-lab"
    return Path(base).expanduser().absolute()


def ensure(kernel: Kernel, refresh: bool = False) -> Image:
    """The image, built when there is none of this recipe (some minutes). Images of older recipes are removed."""
    folder = cache_dir() / _recipe(kernel)
    image = Image(folder / "root.img", folder / "vmlinuz", folder / "initrd")
    cache_dir().mkdir(parents=True, exist_ok=True)
    with _locked(cache_dir() / "lock"):
        if refresh or not image.disk.exists():
            for old in cache_dir().iterdir():
                if old.is_dir() and (old == folder or old.name not in map(_recipe, (USUAL, NEWER))):
                    shutil.rmtree(old)
            print(f"building the lab's image in {folder} (once, some minutes)", flush=True)
            _build(image, kernel)
    return image


def _recipe(kernel: Kernel) -> str:
    ingredients = (SUITE, kernel.packages, PACKAGES, SIZE, INITRAMFS_MODULES, INIT, *kernel.scripts)
    return hashlib.sha256(repr(ingredients).encode()).hexdigest()[:12]


def _build(image: Image, kernel: Kernel) -> None:
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mkfs.ext4", "e2fsprogs")):
        if shutil.which(tool) is None:
            raise SystemExit(f"make lab needs {tool}: apt install {package}")
    with tempfile.TemporaryDirectory(prefix="build-", dir=image.disk.parent.parent) as work:
        root = Path(work, "root")
        _debootstrap(root, Path(work), kernel)
        made = Path(work, "image")
        made.mkdir()
        for name in ("vmlinuz", "initrd.img"):
            shutil.copyfile((root / name).resolve(), made / name.partition(".")[0])
        _make_disk(root, made / "root.img")
        made.replace(image.disk.parent)


def _debootstrap(root: Path, work: Path, kernel: Kernel) -> None:
    init = work / "lab-init"
    init.write_text(INIT)
    modules = "\\n".join(INITRAMFS_MODULES)
    hooks = [
        # Before the kernel is unpacked, so that its initramfs is made once and small.
        f"""mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" "$1/checkout" """
        f"""&& printf 'MODULES=list\\nCOMPRESS=zstd\\n' > "$1/etc/initramfs-tools/conf.d/lab" """
        f"""&& printf '{modules}\\n' > "$1/usr/share/initramfs-tools/modules.d/lab" """,
    ]
    for number, script in enumerate(kernel.scripts):
        path = work / f"{number:02}-lab"
        path.write_text(script)
        hooks.append(f"""install -D -m 755 {path} "$1/etc/kernel/postinst.d/{path.name}" """)
    argv = [
        "mmdebstrap",
        "--variant=minbase",
        "--architectures=amd64",
        f"--include={','.join((*PACKAGES, kernel.packages))}",
    ]
    argv += ["--dpkgopt=force-unsafe-io", "--dpkgopt=path-exclude=/usr/share/doc/*"]
    # The newer kernel's own scripts want a newer run-parts.
    argv += ["--dpkgopt=path-exclude=/usr/share/kernel/*"]
    argv += ["--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*"]
    argv += [f"--essential-hook={hook}" for hook in hooks]
    argv += [f'--customize-hook=install -m 755 {init} "$1/usr/sbin/lab-init"']
    argv += ["--format=directory", SUITE, str(root)]
    argv += [f"deb {MIRROR} {suite} main" for suite in (SUITE, f"{SUITE}-updates", kernel.suite)]
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
