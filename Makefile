# Daily work in a few verbs. Needs Python 3.11 or 3.12 and make: no Java, no Docker, nothing installed by hand; root or not.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup check test up demo bench faults soak schemas lock clean

help:
	@echo "make setup    the environment, from the lock file; nothing to do when up to date"
	@echo "make check    format, lint, types, import contracts, schema drift"
	@echo "make test     unit, contract and integration tests on real PostgreSQL and Kafka"
	@echo "make demo     the whole story in one run"
	@echo "make up       everything on this machine, until Ctrl-C"
	@echo "make bench    measurements"
	@echo "make faults   the fault matrix on real servers, with its figures"
	@echo "make soak     crash pairs, long faults, simulator seeds: MINUTES=30"
	@echo "make schemas  generate schemas/ from the code"
	@echo "make lock     resolve requirements.lock again"
	@echo "make clean    remove what the verbs above made, the environment included"

setup: $(VENV)/.stamp

$(VENV)/.stamp: pyproject.toml requirements.lock services/expunge/embedded/kafka.lock.toml
	@test -n "$(PYTHON)" || { echo "error: no python3 on PATH; Expunge needs Python 3.11 or 3.12" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; (3, 11) <= sys.version_info < (3, 13) or sys.exit("error: %s is Python %s; Expunge needs 3.11 or 3.12 (make PYTHON=/path/to/python3.11)" % (sys.executable, sys.version.split()[0]))'
	@test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	$(BIN)/python -m expunge.embedded.kafka
	@touch $@

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m expunge schemas --check

test: setup
	$(BIN)/python -m pytest -m "not slow and not containers and not thirdparty"

up: setup
	$(BIN)/expunge up

demo: setup
	$(BIN)/expunge demo

bench: setup
	$(BIN)/python -m tests.bench

faults: setup
	$(BIN)/python -m tests.faults

MINUTES ?= 30

soak: setup
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

schemas: setup
	$(BIN)/python -m expunge schemas

# For every platform and both Pythons, with hashes; no index address is written, so any index can serve it. Versions
# stay as they are unless pyproject.toml asks for others: `make lock UPGRADE=--upgrade` takes newer ones.
lock: setup
	$(BIN)/uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
	  --no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make lock" $(UPGRADE) \
	  --quiet --output-file requirements.lock

clean:
	rm -rf $(VENV) build dist demo-output bench-output faults-output .mypy_cache .ruff_cache .pytest_cache .import_linter_cache \
	  .hypothesis .coverage .coverage.*
	find services tests -name __pycache__ -type d -prune -exec rm -rf {} +
