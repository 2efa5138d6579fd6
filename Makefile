# The few commands people use. `make` alone lists them.
#   TORCH_INDEX=URL   an index that has CPU wheels of torch, where pip does not find them by itself
#   PYTHON=...        the Python 3.11 to build the environment with
#   VENV=...          where the environment lies

PYTHON ?= python3.11
VENV ?= .venv
TORCH_INDEX ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/.veripo-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq --progress-bar off # -qq: errors only

.DEFAULT_GOAL := help
.PHONY: help install quickstart test lint bench clean

help: ## list these commands
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 20

install: $(STAMP) ## build .venv with everything that runs on a CPU (about 4 GB)

$(STAMP): pyproject.toml constraints/cpu.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not on the PATH. Install Python 3.11, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { echo "$(PYTHON) is not a Python 3.11 with venv, which constraints/cpu.txt was made for."; exit 1; }
	@echo "Installing into $(VENV): about 4 GB, 2 to 5 minutes."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) --no-deps $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -r constraints/cpu.txt || { echo "If it is torch that was not found: name an index with its CPU wheels by TORCH_INDEX=URL (see README)."; exit 1; }
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@
	@echo "Installed."

quickstart: install ## train the tiny world: SFT model, GRPO, verified DPO, GRPO, and a report
	$(BIN)/veripo train quickstart --output runs/quickstart --overwrite

test: install ## run every test on real parts, with coverage of veripo_ray
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --cov=veripo_ray --cov-report=term --cov-fail-under=90

lint: install ## ruff (lint and format) and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: install ## measure every figure that the README quotes, into runs/benchmarks/*.json
	@mkdir -p runs/benchmarks
	@set -e; for script in benchmarks/[a-z]*.py; do \
	  name=$$(basename $$script .py); echo "== $$name"; \
	  $(BIN)/python $$script --json runs/benchmarks/$$name.json; \
	done

clean: ## remove the environment and every cache; runs/ stays
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
