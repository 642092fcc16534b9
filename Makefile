# Daily work in a few verbs. Needs Python 3.11 or 3.12 and make: no Java, no Docker, nothing installed by hand; root or not.

PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help setup check test up up-here down demo bench faults soak schemas dashboards pictures lock clean

help:
	@echo "make setup    the environment, from the lock file; nothing to do when up to date"
	@echo "make check    format, lint, types, import contracts, schema drift"
	@echo "make test     unit, contract and integration tests on real PostgreSQL and Kafka"
	@echo "make demo     the whole story in one run"
	@echo "make up       everything in containers (docker compose), where an engine answers; else as up-here"
	@echo "make up-here  everything on this machine without containers, until Ctrl-C"
	@echo "make down     stop what make up started in containers; data stays"
	@echo "make bench    measurements"
	@echo "make faults   the fault matrix on real servers, with its figures"
	@echo "make soak     crash pairs, long faults, simulator seeds: MINUTES=30"
	@echo "make schemas  generate schemas/ from the code"
	@echo "make dashboards  generate ops/grafana/dashboards from the code"
	@echo "make pictures draw the dashboards from live data (needs prometheus)"
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
	$(BIN)/python -m pytest -m "not slow and not containers and not thirdparty and not faults"

# The deployment's name: every request is addressed to it, and it never changes. Export your own before the first `make up`.
export EXPUNGE_AUDIENCE ?= expunge.local
export COMPOSE_PROFILES ?= grafana
# Who may read the files in secrets/: ops/compose/secrets.sh says why.
export SECRETS_GROUP ?= $(shell id -g | sed 's/^0$$/999/')

up:
	@if docker compose version >/dev/null 2>&1 && docker info >/dev/null 2>&1; then \
	  sh ops/compose/secrets.sh && docker compose up -d --build --wait && docker compose ps && \
	  echo "Grafana http://127.0.0.1:3000 (admin, secrets/grafana_password); Prometheus http://127.0.0.1:9090; make down stops it"; \
	else \
	  echo "no container engine with Compose v2 answers: running here, without containers"; $(MAKE) up-here; \
	fi

up-here: setup
	env -u EXPUNGE_AUDIENCE $(BIN)/expunge up

down:
	docker compose down

demo: setup
	$(BIN)/expunge demo

bench: setup
	$(BIN)/python -m tests.bench

faults: setup
	$(BIN)/python -m tests.faults

MINUTES ?= 30

soak: setup
	$(BIN)/python -m tests.faults.soak --minutes $(MINUTES)

dashboards: setup
	$(BIN)/python ops/grafana/dashboards.py

# From a live deployment under Debian's Prometheus, which has to be installed.
pictures: setup
	KEEP_PICTURES=ops/grafana/pictures $(BIN)/python -m pytest -q tests/acceptance/test_watched.py -k pictures

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
