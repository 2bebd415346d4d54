# Targets with a ## comment are listed by `make help`.
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint bench fuzz sanity kube lab e2e fresh proto crds manifests clean

help: ## list the targets
	@grep -hE '^[a-z0-9]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: ## create .venv with everything the other targets need (PYTHON=... chooses the interpreter)
	@PYTHON=$(PYTHON) VENV=$(VENV) sh scripts/setup.sh

demo: setup ## watch one volume live: create, attach, mount, write, verify, expand, delete
	@exec $(BIN)/quarry demo $(ARGS)

test: setup lint ## lint, then all tests (ARGS="tests/unit -x" narrows)
	@VENV=$(VENV) sh scripts/emulator.sh
	@$(BIN)/python -m pytest $(ARGS)

lint: setup ## ruff, mypy --strict, import layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: setup ## rates and latencies beside their floors, in one run
	@$(BIN)/python -m tests.bench $(ARGS)

fuzz: setup ## 100,000 random and broken CSI requests to a running agent (ARGS="--requests 5000 --target real")
	@$(BIN)/python -m tests.fuzz $(ARGS)

sanity: setup ## csi-sanity, the conformance suite of the CSI community (installed by Go when CSI_SANITY does not name it)
	@$(BIN)/python -m pytest tests/csi/test_sanity.py -rs -s $(ARGS)

kube: setup ## the roles, sidecars and manifest on a real kube-apiserver (docs/testing.md; ARGS="-k deaths" narrows)
	@$(BIN)/python -m tests.kube $(ARGS)

lab: setup ## tests on a Linux kernel of their own, in a virtual machine (docs/testing.md; ARGS="-k xfs" narrows)
	@$(BIN)/python -m tests.lab $(ARGS)

e2e: setup ## the manifest as real Pods: kubelet, containerd, a StatefulSet with a claim (docs/testing.md; ARGS="-k spdk" narrows)
	@$(BIN)/python -m tests.e2e $(ARGS)

fresh: setup ## the demo, mounts and CSI on Debian 12 and 13 as delivered, as root and as a user (docs/testing.md; ARGS="--suite trixie")
	@$(BIN)/python -m tests.fresh $(ARGS)

proto: setup ## regenerate agent/csi/pb from the CSI specification v1.12.0 (needs Go, or CSI_PROTO=path/to/csi.proto)
	@PATH=$(CURDIR)/$(BIN):$$PATH sh scripts/proto.sh

crds: setup ## regenerate k8s/crds, the Kubernetes resources, from agent/model (then: make manifests)
	@$(BIN)/python -m agent.store.kubernetes.crds k8s/crds

manifests: ## render k8s/chart to k8s/quarry.yaml (needs helm)
	@sh scripts/manifests.sh

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .import_linter_cache
