"""A `kubectl` for PATH: one agent's Pod and one controller's, both proxied to the endpoint that QUARRY_TEST_URL names.

It checks what it is asked as the API server would, and writes each command line to QUARRY_TEST_LOG.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

PODS = {
    "node": {"name": "quarry-node-x7k2p", "node": "worker-1", "port": 9810},
    "controller": {"name": "quarry-controller-5d9f", "node": "worker-2", "port": 9811},
}


def fail(text: str) -> None:
    print(text, file=sys.stderr)
    sys.exit(1)


def pods(selector: str, fields: str) -> dict[str, object]:
    labels = dict(each.split("=") for each in selector.split(","))
    wanted = dict(each.split("=") for each in fields.split(","))
    assert labels["app.kubernetes.io/name"] == "quarry" and wanted["status.phase"] == "Running"
    pod = PODS[labels["app.kubernetes.io/component"]]
    if wanted.get("spec.nodeName", pod["node"]) != pod["node"]:
        return {"items": []}
    ports = [{"name": "csi-probe", "containerPort": 9808}, {"name": "http", "containerPort": pod["port"]}]
    conditions = [{"type": "Ready", "status": "True"}]
    made = {"metadata": {"name": pod["name"]}, "spec": {"containers": [{"name": "agent", "ports": ports}]}}
    return {"items": [made | {"status": {"conditions": conditions}}]}


def raw(path: str) -> str:
    match = re.fullmatch(r"/api/v1/namespaces/quarry-system/pods/([^/:]+):(\d+)/proxy(/.*)", path)
    if match is None or (match[1], int(match[2])) not in [(pod["name"], pod["port"]) for pod in PODS.values()]:
        fail("Error from server (NotFound): the server could not find the requested resource")
        raise AssertionError
    try:
        with urllib.request.urlopen(os.environ["QUARRY_TEST_URL"] + match[3], timeout=10) as answer:
            return str(answer.read().decode())
    except urllib.error.HTTPError as error:
        fail(f"Error from server: {error.reason}")
        raise AssertionError from error


def main(argv: list[str]) -> None:
    with Path(os.environ["QUARRY_TEST_LOG"]).open("a") as log:
        log.write(json.dumps(argv) + "\n")
    if argv[:1] == ["--context"]:
        argv = argv[2:]
    options = dict(itertools.pairwise(argv))
    if argv[:2] == ["get", "pods"] and options["-n"] == "quarry-system":
        print(json.dumps(pods(options["-l"], options["--field-selector"])))
    elif argv[:2] == ["get", "pods"]:
        print(json.dumps({"items": []}))
    elif argv[:2] == ["get", "--raw"]:
        print(raw(argv[2]))
    elif argv[0] == "exec" and argv[3] == PODS["node"]["name"] and options["-c"] == "agent":
        sys.exit(subprocess.run(argv[argv.index("--") + 1 :]).returncode)
    else:
        fail(f"error: unknown command {argv}")


main(sys.argv[1:])
