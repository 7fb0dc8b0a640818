# Veilset: `make repro` and `make test` are all a new user needs.
.DEFAULT_GOAL := help
.PHONY: help setup repro flow serve test test-slow bench check format ui lock clean

PYTHON ?= $(shell for p in python3.12 python3.11 python3 python; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
UV := .uv/bin/uv
BIN := .venv/bin
SOURCES := src flows tests benchmarks studies
export PATH := $(CURDIR)/.venv/bin:$(PATH)

help:  ## Say what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

setup: .venv/.ready  ## Set up .venv from the hashed requirements.lock

repro: setup  ## Run the whole pipeline, then record it in MLflow and say where the report is
	@$(BIN)/dvc repro
	@$(BIN)/veilset audit sync --if-changed

flow: setup  ## The same pipeline as a Prefect flow
	@$(BIN)/python flows/pipeline.py

serve: setup  ## Take in, protect and record new data by themselves (docs/schedule.md)
	@exec $(BIN)/python flows/drops.py

test: setup  ## Run the tests (minutes)
	@OMP_NUM_THREADS=1 $(BIN)/pytest -m "not slow" -n auto --dist loadgroup

test-slow: setup  ## Run the long tests (kills, large sets)
	@$(BIN)/pytest -m slow --timeout=3600

bench: setup  ## Measure speed as ratios within one run; results in benchmarks/results
	@$(BIN)/python -m benchmarks.schemes
	@$(BIN)/python -m benchmarks.metrics
	@$(BIN)/python -m benchmarks.training
	@$(BIN)/python -m benchmarks.drops

check: setup  ## ruff, mypy and import-linter
	@$(BIN)/ruff format --check $(SOURCES)
	@$(BIN)/ruff check $(SOURCES)
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: setup  ## Format the code
	@$(BIN)/ruff format $(SOURCES)
	@$(BIN)/ruff check --fix $(SOURCES)

ui: setup  ## Open the MLflow UI on this project's store
	@$(BIN)/veilset ui

lock: $(UV)  ## Resolve requirements.lock anew
	@$(UV) pip compile pyproject.toml --group dev --universal --generate-hashes --no-emit-index-url \
		--no-header --python-version 3.11 --quiet --output-file requirements.lock

clean:  ## Remove the environment (data, keys and records stay)
	rm -rf .venv .uv

$(UV): requirements-uv.lock
	@test -n "$(PYTHON)" || { echo "Veilset needs Python 3.11 or 3.12, and none is on the PATH: install one, or run make PYTHON=/path/to/python3.12." >&2; exit 1; }
	@echo "Setting up with $(PYTHON) (once; a few minutes, about 6 GB with the CUDA build of torch)"
	@$(PYTHON) -m venv --clear .uv
	@.uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	@touch $@

.venv/.ready: requirements.lock pyproject.toml $(UV)
	@test -x $(BIN)/python || $(UV) venv --quiet --python .uv/bin/python .venv
	@$(UV) pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes requirements.lock
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	-@$(BIN)/veilset remote seal shared
	@touch $@
