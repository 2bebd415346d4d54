#!/bin/sh
# The programs that run and fetch the emulator of the Kubernetes API, where there is no API server (docs/testing.md).
set -eu
cd "$(dirname "$0")/.."
. scripts/system.sh
jars="${VENV:-.venv}/share/kubernetes-emulator"

PATH="${KUBEBUILDER_ASSETS:+$KUBEBUILDER_ASSETS:}$PATH"
have kube-apiserver && exit 0
packages=""
have java || packages="$packages default-jre-headless"
{ [ -d "$jars" ] || have mvn; } || packages="$packages maven"
# shellcheck disable=SC2086
[ -z "$packages" ] || apt_install "tests of a cluster are skipped" $packages
