# The commands of the project; `make help` lists them.
VENV := .venv/bin
PORT ?= 4000
# Tests start hundreds of nodes: without a cache each would compile every module first, half a second.
export PYTHONDONTWRITEBYTECODE :=
PIP_INSTALL := $(VENV)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help setup serve test torture clients lint format bench bench-quick bench-peers lock clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: .venv/.runtime ## create .venv with the undercroft command in it

serve: setup ## run the node on 127.0.0.1:4000 (PORT=... for another) with its data in ./data
	exec $(VENV)/undercroft serve --data-dir data --host 127.0.0.1 --port $(PORT)

test: .venv/.fuzz ## set up everything, lint, type check and run all tests
	scripts/install-debian-packages tests/clients/debian-packages.txt
	scripts/install-debian-packages benchmarks/debian-packages.txt
	scripts/install-debian-packages tests/system/debian-packages.txt
	scripts/install-npm-packages tests/clients/npm
	$(MAKE) --no-print-directory lint
	$(VENV)/python -m pytest -n 2 --no-loadscope-reorder $(PYTEST_ARGS)

torture: .venv/.fuzz ## campaigns, properties and system tests in their long form (PYTEST_ARGS='--seed 7' repeats one)
	HYPOTHESIS_PROFILE=long $(VENV)/python -m pytest -m "campaign or hypothesis or system" --torture $(PYTEST_ARGS)

clients: .venv/.bench ## drive the real build tools, and renew docs/clients.md
	scripts/install-debian-packages tests/clients/debian-packages.txt
	scripts/install-npm-packages tests/clients/npm
	$(VENV)/python -m pytest tests/clients --update-clients-table

# The benchmarks are type checked too, against the peers they measure.
lint: .venv/.bench ## ruff and mypy
	$(VENV)/ruff check .
	$(VENV)/ruff format --check .
	$(VENV)/mypy

format: .venv/.dev ## let ruff format and sort
	$(VENV)/ruff format .
	$(VENV)/ruff check --fix .

bench: bench-peers ## measure against peers, half an hour, and renew docs/performance.md (BENCH='mixed growth' for some)
	$(VENV)/python -m benchmarks $(BENCH)

bench-quick: bench-peers ## see that every benchmark runs; measures nothing worth keeping
	$(VENV)/python -m benchmarks --quick $(BENCH)

bench-peers: .venv/.bench
	scripts/install-debian-packages benchmarks/debian-packages.txt
	scripts/install-npm-packages benchmarks/npm .venv/npm-peers

lock: ## renew requirements/*.lock from pyproject.toml (needs uv)
	uv pip compile -q pyproject.toml --upgrade --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -o requirements/runtime.lock
	uv pip compile -q pyproject.toml --upgrade --group dev --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -c requirements/runtime.lock -o requirements/dev.lock
	uv pip compile -q pyproject.toml --upgrade --group bench --generate-hashes --no-emit-index-url --no-header --python-version 3.11 -c requirements/dev.lock -o requirements/bench.lock
	uv pip compile -q --upgrade --group fuzz --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --universal -o requirements/fuzz.lock

clean: ## remove .venv and caches, never ./data
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .benchmark-*

.venv/bin/python:
	scripts/create-venv

# Hashes are required, so what is installed is what was locked.
.venv/.runtime: requirements/runtime.lock pyproject.toml | .venv/bin/python
	$(PIP_INSTALL) --require-hashes -r requirements/runtime.lock
	$(PIP_INSTALL) --no-deps --editable .
	touch $@

.venv/.dev: requirements/dev.lock .venv/.runtime
	$(PIP_INSTALL) --require-hashes -r requirements/dev.lock
	touch $@

.venv/.bench: requirements/bench.lock .venv/.dev
	$(PIP_INSTALL) --require-hashes -r requirements/bench.lock
	touch $@

.venv/.fuzz: requirements/fuzz.lock .venv/.bench
	$(PIP_INSTALL) --require-hashes -r requirements/fuzz.lock
	touch $@
