# What the other scripts need to know of this machine, and a way to install programs. To be sourced.

say() { echo "setup: $*"; }
fail() { say "$*" >&2; exit 1; }
have() { PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null 2>&1; }

# Debian packages, where they can be had; $1 says what becomes of what needs them, the rest names them.
apt_install() {
    without=$1; shift
    if [ "$(id -u)" = 0 ] && have apt-get; then
        say "installing with apt: $*"
        { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends "$@"; } \
            </dev/null >/dev/null || say "apt could not install $*: $without" >&2
    else
        say "not root, so not installed: $* ($without)"
    fi
}
