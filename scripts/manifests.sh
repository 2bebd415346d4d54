#!/bin/sh
# Renders k8s/chart to k8s/quarry.yaml (or to $1): what `kubectl apply -f` takes.
set -eu
cd "$(dirname "$0")/.."
out="${1:-k8s/quarry.yaml}"
helm="${HELM:-helm}"
command -v "$helm" >/dev/null || { echo "manifests: no helm (PATH or HELM; docs/testing.md)" >&2; exit 1; }
{
    echo "# Made from k8s/chart by \`make manifests\`: change it there. Before it is applied: docs/install.md."
    # The version only says what is there to render for; helm's own idea of it is out of date.
    "$helm" template quarry k8s/chart --namespace quarry-system --include-crds --set namespace.create=true \
        --kube-version 1.37.0 2>"$out.log" || { cat "$out.log" >&2; rm -f "$out.log" "$out.new"; exit 1; }
} >"$out.new"
rm -f "$out.log"
mv "$out.new" "$out"
