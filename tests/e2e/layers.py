"""What each step of an image leaves: made once over what lies below (overlayfs), kept under its recipe's hash."""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

MIRROR = os.environ.get("QUARRY_E2E_MIRROR", "http://deb.debian.org/debian")
CA_FILE = "/etc/ssl/certs/ca-certificates.crt"
TIMEOUT_S = 1200
_NONE: Mapping[str, str] = {}

# In namespaces of their own, so that nothing has to be unmounted or ended, whatever happens.
_APART = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--", "/bin/sh", "-ec"]
_MOUNT = 'mount -t overlay overlay -o "$OVERLAY" "$ROOT"\n'
_CHROOT = """\
mount -t tmpfs tmpfs "$ROOT/dev/shm"
mount -t proc proc "$ROOT/proc"
mount --bind /etc/resolv.conf "$ROOT/etc/resolv.conf"
[ -z "$TRUSTED" ] || mount --bind "$TRUSTED" "$ROOT$CA_FILE"
exec chroot "$ROOT" /bin/sh -c "$COMMAND"
"""
_WHITEOUT, _OPAQUE = ".wh.", ".wh..wh..opq"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True, slots=True)
class Layer:
    """`folder/tree` is what is added to what lies below, in overlayfs's own terms; `says` is the step."""

    key: str
    folder: Path
    says: str

    @property
    def tree(self) -> Path:
        return self.folder / "tree"

    @property
    def tar(self) -> Path:
        return self.folder / "layer.tar"

    def digest(self) -> str:
        """sha256 of `tar`, which is made now unless it is there."""
        noted = self.folder / "digest"
        if not noted.exists():
            _pack(self.tree, self.tar)
            with self.tar.open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            noted.write_text(found)
        return noted.read_text()


class Workshop:
    """Makes layers, one workshop at a time. Those that it was not asked for can be removed with `sweep`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._used: set[str] = set()
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def close(self) -> None:
        self._lock.close()

    def base(self, reference: str) -> Layer:
        """What stands for `python:3.13-slim-trixie`, as no registry is asked: that Debian with its own Python."""
        found = re.fullmatch(r"(?:docker\.io/library/)?python:(\d+\.\d+)-slim-([a-z]+)", reference)
        if found is None:
            raise ValueError(f"base image {reference}: only python:X.Y-slim-SUITE can be stood in for")
        version, suite = found.groups()
        program = ["mmdebstrap", "--quiet", "--variant=minbase", "--include=ca-certificates,python3,python3-venv"]
        program += [f"--dpkgopt=path-exclude=/usr/share/{each}/*" for each in ("doc", "man", "locale")]
        links = "mkdir -p usr/local/bin; for n in python python3; do ln -sf /usr/bin/python3 usr/local/bin/$n; done"
        program += [f'--customize-hook=cd "$1" && {links} && touch etc/resolv.conf']

        def make(tree: Path) -> None:
            # It mounts what is this machine's into the tree: so nothing of that may be seen, or last, outside.
            apart = [*_APART, 'mount -t tmpfs tmpfs /dev/shm; exec "$@"', "sh", *program]
            subprocess.run([*apart, "--format=directory", suite, tree, MIRROR], check=True, timeout=TIMEOUT_S)
            if not (tree / f"usr/bin/python{version}").exists():
                raise ValueError(f"base image {reference}: Debian {suite} has no Python {version}")

        return self._layer(f"FROM {reference}", [repr(program), suite, MIRROR], make)

    def run(self, below: Sequence[Layer], command: str, env: dict[str, str], workdir: str) -> Layer:
        """What `RUN command` changes."""

        def make(tree: Path) -> None:
            _in_overlay(
                below, tree, _CHROOT, {**_from_here(), **env, "COMMAND": f"mkdir -p {workdir}; cd {workdir}; {command}"}
            )

        return self._layer(f"RUN {command}", [_keys(below), command, repr(sorted(env.items())), workdir], make)

    def copy(
        self, below: Sequence[Layer], files: Iterable[tuple[Path, str]], says: str, links: Mapping[str, str] = _NONE
    ) -> Layer:
        """Files put at paths inside: (file, /path/inside); links: /path/inside and what it points to."""
        pairs = sorted(files, key=lambda pair: pair[1])
        parts = [repr(sorted(links.items())), *(f"{inside} {_content(file)}" for file, inside in pairs)]

        def make(tree: Path) -> None:
            tree.mkdir()
            for file, inside in pairs:
                target = tree / inside.lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(file, target)
            for inside, aim in links.items():
                link = tree / inside.lstrip("/")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(aim)

        return self._layer(says, [_keys(below), *parts], make)

    def take(self, below: Sequence[Layer], source: Sequence[Layer], path: str, inside: str) -> Layer:
        """`COPY --from`: a folder of another stage."""

        def make(tree: Path) -> None:
            target = tree / inside.lstrip("/")
            target.parent.mkdir(parents=True)
            _in_overlay(source, None, 'cp -a "$ROOT$FROM" "$TARGET"', {"FROM": path, "TARGET": str(target)})

        return self._layer(f"COPY --from {path} {inside}", [_keys(below), _keys(source), path, inside], make)

    def sweep(self) -> None:
        """Removes layers of former recipes."""
        for old in self.folder.iterdir():
            if old.is_dir() and old.name not in self._used:
                shutil.rmtree(old)

    def _layer(self, says: str, recipe: Sequence[str], make: Callable[[Path], None]) -> Layer:
        key = hashlib.sha256("\0".join([says, *recipe]).encode()).hexdigest()[:16]
        layer = Layer(key, self.folder / key, says)
        self._used.add(key)
        if not layer.folder.exists():
            print(f"  {says}", flush=True)
            making = layer.folder.with_suffix(".new")
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            make(making / "tree")
            making.rename(layer.folder)
        return layer


def _keys(layers: Sequence[Layer]) -> str:
    return " ".join(layer.key for layer in layers)


def _content(file: Path) -> str:
    with file.open("rb") as opened:
        return f"{file.stat().st_mode:o} {hashlib.file_digest(opened, 'sha256').hexdigest()}"


def _from_here() -> dict[str, str]:
    """Of this environment what a build may see: proxies, where packages come from, who is trusted."""
    names = {"PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST"}
    passed = {k: v for k, v in os.environ.items() if k in names or k.lower().endswith("_proxy")}
    trusted = os.environ.get("SSL_CERT_FILE", "")
    passed |= {"DEBIAN_FRONTEND": "noninteractive", "TRUSTED": trusted, "CA_FILE": CA_FILE}
    if trusted:
        passed |= {"SSL_CERT_FILE": CA_FILE, "PIP_CERT": CA_FILE}
    return passed


def _in_overlay(below: Sequence[Layer], tree: Path | None, script: str, env: dict[str, str]) -> None:
    """Runs a shell script with `below` mounted at $ROOT; what it changes there is in `tree`."""
    with tempfile.TemporaryDirectory(prefix="build-", dir=below[0].folder.parent) as name:
        root, work, empty = (Path(name, each) for each in ("root", "work", "empty"))
        for each in (root, work, empty, *([tree] if tree else [])):
            each.mkdir()
        lower = ":".join(str(layer.tree) for layer in reversed(below))
        options = f"lowerdir={lower},upperdir={tree},workdir={work}" if tree else f"lowerdir={empty}:{lower}"
        given = {"PATH": _PATH, "ROOT": str(root), "OVERLAY": options, **env}
        done = subprocess.run(
            [*_APART, _MOUNT + script], env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=TIMEOUT_S
        )
    if done.returncode:
        raise RuntimeError(f"{script if tree is None else env['COMMAND']}\n{done.stdout.decode(errors='replace')}")


def _pack(tree: Path, archive: Path) -> None:
    """A layer as OCI has it: what overlayfs marks as removed becomes a file `.wh.NAME`."""
    with tarfile.open(archive, "w", format=tarfile.GNU_FORMAT) as file:
        for path in sorted(tree.rglob("*")):
            inside = path.relative_to(tree)
            if path.is_char_device() and path.stat().st_rdev == 0:
                file.addfile(tarfile.TarInfo(str(inside.with_name(_WHITEOUT + inside.name))))
                continue
            file.add(path, str(inside), recursive=False)
            if path.is_dir() and not path.is_symlink() and _is_opaque(path):
                file.addfile(tarfile.TarInfo(str(inside / _OPAQUE)))


def _is_opaque(folder: Path) -> bool:
    try:
        return os.getxattr(folder, "trusted.overlay.opaque") == b"y"
    except OSError:
        return False
