#!/bin/sh
# Creates the virtual environment and, as root on Debian, installs the programs that mount and format volumes.
set -eu
PYTHON=${PYTHON:-python3.11}
VENV=${VENV:-.venv}

need_apt=""
have() { command -v "$1" >/dev/null 2>&1; }
have "$PYTHON" || PYTHON=python3
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "setup: Python 3.11 or newer is needed (Debian: apt install python3 python3-venv)" >&2; exit 1; }
"$PYTHON" -c 'import ensurepip' 2>/dev/null || need_apt="$need_apt python3-venv"
have mkfs.ext4 || need_apt="$need_apt e2fsprogs"
have mkfs.xfs || need_apt="$need_apt xfsprogs"
have losetup && have mount || need_apt="$need_apt mount"
have blkid || need_apt="$need_apt util-linux"
if [ -n "$need_apt" ]; then
    if [ "$(id -u)" = 0 ] && have apt-get; then
        echo "setup: installing with apt:$need_apt"
        # shellcheck disable=SC2086
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends $need_apt; } >/dev/null \
            || echo "setup: apt could not install$need_apt; what needs them will say so" >&2
    else
        echo "setup: not root, so not installed:$need_apt (tests and demo steps that need them are skipped or done in user space)"
    fi
fi
if [ ! -x "$VENV/bin/python" ]; then
    echo "setup: creating $VENV with $("$PYTHON" --version)"
    "$PYTHON" -m venv "$VENV"
fi
echo "setup: installing quarry and its development tools into $VENV"
"$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
