# gsg_jax: every verb works on a fresh machine with Python 3.11+, make and a package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
QUICKSTART_DIR ?= runs/quickstart

ifneq ($(and $(filter command line,$(origin PYTHON)),$(wildcard $(VENV)/bin/python)),)
ifneq ($(shell $(PYTHON) -V),$(shell $(BIN)/python -V))
$(error $(VENV) has $(shell $(BIN)/python -V), $(PYTHON) is $(shell $(PYTHON) -V): add VENV=.venv-new, or run "make clean" first)
endif
endif

.PHONY: help setup quickstart test test-all faults lint format docs bench bench-all results study-small clean
help: ## lists the verbs
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/.runtime ## makes .venv with what gsg_jax needs to run

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "gsg_jax needs Python 3.11 or newer, $(PYTHON) is $$($(PYTHON) -V 2>&1): for example, set PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/python -m pip install -q --upgrade pip >&2
	@touch $@

$(VENV)/.runtime: $(VENV)/.python requirements.txt pyproject.toml
	@echo "installing gsg_jax into $(VENV) ..." >&2
	@$(BIN)/python -m pip install -q -e . >&2
	@touch $@

$(VENV)/.dev: $(VENV)/.runtime
	@$(BIN)/python -m pip install -q -e '.[dev]' >&2
	@touch $@

$(VENV)/.dev-all: $(VENV)/.dev
	@$(BIN)/python -m pip install -q -e '.[dev-all]' >&2
	@touch $@

$(VENV)/.bench: $(VENV)/.runtime
	@$(BIN)/python -m pip install -q -e '.[bench]' >&2
	@touch $@

$(VENV)/.docs: $(VENV)/.runtime
	@$(BIN)/python -m pip install -q -e '.[docs]' >&2
	@touch $@

quickstart: setup ## pretrains simsiam_gsg on the embedded images (runs/quickstart)
	@$(BIN)/python -m gsg_jax.main --config=configs/simsiam_gsg.py --workdir=$(QUICKSTART_DIR)

test: $(VENV)/.dev ## runs the tests that every change must pass (minutes)
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m 'not extended'

test-all: $(VENV)/.dev-all ## runs the rest: PyTorch, a browser, launch scripts, notebooks, faults, two hosts
	@$(BIN)/python -m pytest -n 2 --dist worksteal -m extended

faults: $(VENV)/.dev ## kills, damages and starves runs, many times each, and prints what was survived
	@FAULTS=full $(BIN)/python -m pytest tests/faults

lint: $(VENV)/.dev ## checks style, format, the directions of imports and shell scripts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo --no-cache >&2
	@$(BIN)/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh launch/slurm.sbatch

format: $(VENV)/.dev ## fixes style and format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(VENV)/.docs ## builds the documentation into site/, and stops at a broken link
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

bench: setup ## times the step of every method
	@$(BIN)/python benchmarks/step_time.py

bench-all: $(VENV)/.bench ## runs every benchmark of speed and cost and prints one table
	@$(BIN)/python benchmarks/run_all.py

results: setup ## pretrains simsiam_gsg by three seeds and writes the table of docs/results.md
	@$(BIN)/python benchmarks/results.py --methods=simsiam_gsg --output=docs/results.md

study-small: setup ## runs every study at toy size (runs/study-small)
	@ls configs/studies | sed -n 's/\.py$$//p' | XLA_FLAGS=--xla_backend_optimization_level=0 xargs -P 2 -I NAME \
	  $(BIN)/python -m gsg_jax study --study=NAME --toy --workdir=runs/study-small/NAME

clean: ## removes .venv, site/ and caches; runs/ stays
	rm -rf $(VENV) site .pytest_cache .ruff_cache *.egg-info
