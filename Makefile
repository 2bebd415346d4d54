# Targets with a ## comment are listed by `make help`.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help setup demo test lint bench proto clean
help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

setup: $(VENV)/.installed ## create .venv with everything the other targets need

$(VENV)/.installed: pyproject.toml scripts/setup.sh
	@PYTHON=$(PYTHON) VENV=$(VENV) sh scripts/setup.sh
	@touch $@

demo: setup ## watch one volume live: create, attach, mount, write, verify, expand, delete
	@$(BIN)/quarry demo

test: setup lint ## lint, then all tests
	@$(BIN)/python -m pytest

lint: setup ## ruff, mypy --strict, import layers
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

bench: setup ## rates and latencies beside their floors, in one run
	@$(BIN)/python -m tests.bench

proto: setup ## regenerate agent/csi/pb from the CSI specification v1.12.0 (needs Go, or CSI_PROTO=path/to/csi.proto)
	@PATH=$(CURDIR)/$(BIN):$$PATH sh scripts/proto.sh

clean: ## remove the virtual environment and caches
	@rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache
