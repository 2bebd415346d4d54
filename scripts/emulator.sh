#!/bin/sh
# The emulator of the Kubernetes API, where there is no API server (docs/testing.md). Safe to repeat.
set -eu
cd "$(dirname "$0")/.."
. scripts/system.sh
VENV=${VENV:-.venv}
mkdir -p "$VENV/share"
jars="$(cd "$VENV/share" && pwd)/kubernetes-emulator"
wanted=tests/emulator/pom.xml
without="tests of a cluster are skipped"

PATH="${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS:}$PATH"
have kube-apiserver && have etcd && have openssl && [ "${QUARRY_KUBERNETES:-}" != emulator ] && exit 0
fetched() { cmp -s "$wanted" "$jars/pom.xml"; }

packages=""
have java || packages="$packages default-jre-headless"
fetched || have mvn || packages="$packages maven"
# shellcheck disable=SC2086
[ -z "$packages" ] || apt_install "$without" $packages

if ! fetched && have mvn; then
    say "fetching the emulator of the Kubernetes API with Maven (35 MB)"
    rm -rf "$jars" "$jars.part"
    if timeout 300 mvn -q -B -f "$wanted" dependency:copy-dependencies "-DoutputDirectory=$jars.part" \
            >"$VENV/emulator.log" 2>&1; then
        cp "$wanted" "$jars.part/pom.xml"
        mv "$jars.part" "$jars"
    else
        say "Maven could not fetch it: $without (the whole story is in $VENV/emulator.log)" >&2
    fi
fi
