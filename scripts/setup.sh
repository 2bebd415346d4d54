#!/bin/sh
# Creates the virtual environment and, as root on Debian, installs the programs that mount and format volumes.
# Safe to repeat: does nothing when nothing changed, repairs an environment that was left half made.
set -eu
cd "$(dirname "$0")/.."
VENV=${VENV:-.venv}
stamp="$VENV/.installed"
log="$VENV/setup.log"

. scripts/system.sh
new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
can_make_venv() { "$1" -c 'import venv; from ensurepip import version' >/dev/null 2>&1; }
# What the environment was made from: the requirements, this script, and the place (an editable install knows its path).
state() { printf '%s %s\n' "$PWD" "$(cat pyproject.toml scripts/setup.sh scripts/system.sh | cksum)"; }

if [ "$(cat "$stamp" 2>/dev/null)" = "$(state)" ] && "$VENV/bin/python" -c 'import agent, click, pytest' 2>/dev/null; then
    exit 0
fi

# --- Python: the one asked for, else the first that is new enough (a pyenv shim may exist and still not run)
python=""
for candidate in ${PYTHON:-} python3.11 python3 /usr/bin/python3 python3.12 python3.13; do
    if new_enough "$candidate"; then python=$candidate; break; fi
done
[ -n "$python" ] || fail "Python 3.11 or newer is needed (Debian: apt install python3 python3-venv)"
[ -z "${PYTHON:-}" ] || [ "$python" = "$PYTHON" ] || say "$PYTHON is not a Python 3.11 or newer, using $python"

# --- programs of the system
packages=""
can_make_venv "$python" || packages="$packages python3-venv"
have mkfs.ext4 || packages="$packages e2fsprogs"
have mkfs.xfs || packages="$packages xfsprogs"
have mkfs.btrfs || packages="$packages btrfs-progs"
{ have losetup && have mount; } || packages="$packages mount"
{ have blkid && have setpriv; } || packages="$packages util-linux"
if [ -e /dev/nvme-fabrics ] || { have modinfo && PATH="$PATH:/usr/sbin:/sbin" modinfo nvme_tcp >/dev/null 2>&1; }; then
    have nvme || packages="$packages nvme-cli"
fi
# shellcheck disable=SC2086
[ -z "$packages" ] || apt_install "what needs them is skipped or done in user space" $packages

# --- the environment
if ! "$VENV/bin/python" -m pip --version >/dev/null 2>&1 || ! new_enough "$VENV/bin/python"; then
    say "creating $VENV with $("$python" --version)"
    if can_make_venv "$python"; then
        "$python" -m venv --clear "$VENV"
    elif "$python" -m pip --version >/dev/null 2>&1; then
        # Debian without python3-venv and without root: the system's pip can fill an environment that has none.
        "$python" -m venv --clear --without-pip "$VENV"
        "$python" -m pip --quiet --python "$VENV/bin/python" install pip
    else
        fail "$python cannot make a virtual environment; run this as root: apt install python3-venv"
    fi
fi
rm -f "$stamp"
say "installing quarry and its development tools into $VENV (the first time takes about a minute)"
if ! "$VENV/bin/python" -m pip install --disable-pip-version-check --editable '.[dev]' >"$log" 2>&1; then
    tail -n 15 "$log" >&2
    fail "pip failed; the whole story is in $log"
fi
state >"$stamp"
say "done: $("$VENV/bin/quarry" --version), $("$VENV/bin/python" --version)"
