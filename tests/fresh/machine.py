"""A fresh machine: a Debian made of packages, with a clean clone of this checkout in it, thrown away afterwards."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
SUITES = ("bookworm", "trixie")
"""Debian 12 and 13."""
MIRROR = os.environ.get("QUARRY_FRESH_MIRROR", "http://deb.debian.org/debian")
PACKAGES = ("ca-certificates", "git", "make", "python3")
"""What the README asks for, and what a clone is made with. Everything else is fetched by `make`."""
MAKE_TIMEOUT_S = 900.0
USER = 1000

_CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
_APART = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation", "private")
# The kernel's devices are this machine's: loop devices are not of a namespace. All else goes with the namespace.
_ENTER = """\
set -eu
mount -t overlay overlay -o "lowerdir=$BASE,upperdir=$WORK/upper,workdir=$WORK/overlay" "$WORK/root"
cd "$WORK/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
cp -L /etc/resolv.conf etc/resolv.conf
for pair in $BOUND; do
    from=${pair%%=*} to=${pair#*=}
    if [ -d "$from" ]; then mkdir -p "./$to"; else mkdir -p "./${to%/*}"; touch "./$to"; fi
    mount --bind "$from" "./$to"
done
exec chroot . /bin/sh -c "$COMMAND"
"""


def missing() -> str:
    """Why no machine can be made here; empty: it can."""
    if os.geteuid() != 0:
        return "needs root: namespaces, overlayfs, chroot"
    lacking = [name for name in ("mmdebstrap", "unshare", "git") if shutil.which(name) is None]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if "\toverlay\n" not in Path("/proc/filesystems").read_text():
        return "this kernel has no overlayfs"
    return ""


@dataclass(frozen=True)
class Fresh:
    """Nothing is on it but `PACKAGES` and the clone in /home/quarry/quarry."""

    suite: str
    base: Path
    work: Path
    user: bool
    """Commands run as an ordinary user instead of root."""

    def run(self, command: str, timeout_s: float = MAKE_TIMEOUT_S) -> int:
        """Exit status of a shell command in the clone; what it prints is seen as it comes."""
        become = f"setpriv --reuid {USER} --regid {USER} --clear-groups --inh-caps=-all " if self.user else ""
        return self._chroot(f"cd /home/quarry/quarry && exec {become}/bin/sh -c '{command}'", timeout_s)

    def as_root(self, command: str, timeout_s: float = MAKE_TIMEOUT_S) -> int:
        """As `run`, by the administrator."""
        return self._chroot(command, timeout_s)

    def _chroot(self, command: str, timeout_s: float) -> int:
        cache = cache_dir() / f"pip-{'user' if self.user else 'root'}"
        bound = {cache: "var/cache/pip", _apt_cache(self.suite): "var/cache/apt/archives"}
        environment = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/home/quarry",
            "LANG": "C.UTF-8",
            "TERM": "dumb",
            "PIP_CACHE_DIR": "/var/cache/pip",
            "BASE": str(self.base),
            "WORK": str(self.work),
            "COMMAND": command,
            **_from_here(bound),
        }
        environment["BOUND"] = " ".join(f"{source}={inside}" for source, inside in bound.items())
        for folder in (cache, _apt_cache(self.suite)):
            folder.mkdir(exist_ok=True)
        os.chown(cache, *((USER, USER) if self.user else (0, 0)))
        sys.stdout.flush()
        return subprocess.run([*_APART, "sh", "-c", _ENTER], env=environment, timeout=timeout_s, check=False).returncode


@contextmanager
def fresh(suite: str, *, user: bool = False) -> Iterator[Fresh]:
    """A machine for the block. Base systems are kept in `cache_dir()` (about a minute each, once)."""
    base = base_of(suite)
    with tempfile.TemporaryDirectory(prefix="quarry-fresh-") as folder:
        work = Path(folder)
        home = work / "upper" / "home" / "quarry"
        home.mkdir(parents=True)
        for each in ("overlay", "root"):
            (work / each).mkdir()
        work.chmod(0o755)
        subprocess.run(["git", "clone", "--quiet", "--no-hardlinks", CHECKOUT, home / "quarry"], check=True)
        if user:
            subprocess.run(["chown", "-R", f"{USER}:{USER}", home], check=True)
        yield Fresh(suite, base, work, user)


def cache_dir() -> Path:
    given = (
        os.environ.get("QUARRY_FRESH_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "quarry-fresh"
    )
    return Path(given).expanduser().absolute()


def base_of(suite: str) -> Path:
    """The system as it is delivered, made when there is none. Raises CalledProcessError, where no mirror answers."""
    recipe = hashlib.sha256(repr((MIRROR, PACKAGES)).encode()).hexdigest()[:12]
    base = cache_dir() / f"{suite}-{recipe}"
    cache_dir().mkdir(parents=True, exist_ok=True)
    with (cache_dir() / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not base.exists():
            print(f"making Debian {suite} in {base} (once, about a minute)", flush=True)
            making = base.with_name(f"{base.name}.part")
            shutil.rmtree(making, ignore_errors=True)
            argv = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={','.join(PACKAGES)}"]
            argv += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")]
            known = f"quarry:x:{USER}:{USER}::/home/quarry:/bin/sh"
            argv += ["--dpkgopt=force-unsafe-io", f'--customize-hook=echo {known} >> "$1/etc/passwd"']
            argv += ["--format=directory", suite, str(making), MIRROR]
            apart = [*_APART[:2], *_APART[-2:]]  # it mounts what is this machine's: nothing of it may last outside
            subprocess.run([*apart, *argv], check=True, timeout=MAKE_TIMEOUT_S)
            making.rename(base)
    return base


def _apt_cache(suite: str) -> Path:
    return cache_dir() / f"apt-{suite}"


def _from_here(bound: dict[Path, str]) -> dict[str, str]:
    """Of this environment what an installation may see: proxies, where packages come from, who is trusted."""
    passed = {k: v for k, v in os.environ.items() if k.startswith("PIP_") or k.lower().endswith("_proxy")}
    passed.pop("PIP_CACHE_DIR", None)
    trusted = Path(os.environ.get("SSL_CERT_FILE") or os.environ.get("PIP_CERT") or "")
    if trusted.is_file():
        bound[trusted.resolve()] = _CA_FILE.lstrip("/")
        passed |= {"SSL_CERT_FILE": _CA_FILE, "PIP_CERT": _CA_FILE}
    for wheels in map(Path, passed.get("PIP_FIND_LINKS", "").split()):
        if wheels.is_dir():
            bound[wheels] = str(wheels).lstrip("/")
    return passed
